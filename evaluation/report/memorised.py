"""Is a sample one of the training images? Nearest neighbours in pixel space, with held-out images as the reference.

A sample is flagged that is nearer to the training images than 99 % of held-out images are, or equal to one of them. A
model that has learned the distribution and nothing of its training images has about 1 % of its samples flagged.
"""

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data import whole_file
from evaluation.nearest import nearest, picture_values, some_of
from evaluation.report.charts import histogram
from evaluation.report.images import picture
from evaluation.report.markup import Markup, join, note, tag
from evaluation.report.samples import enlarged, sample_array
from evaluation.report.section import Source

SHARE = 0.01
"""Of held-out images that are nearer than the distance below which samples are flagged."""
MOST_SAMPLES, MOST_HELD_OUT, PAIRS = 256, 256, 12
FILE = "nearest.npz"


@dataclass(frozen=True)
class Neighbours:
    """Distances of samples and of held-out images to the training images, and the nearest pairs.

    Attributes:
        samples: distance of each sample, ascending.
        numbers: their places in the array of samples.
        indices: of the nearest training images.
        heldout: distances of held-out images; empty where none are held out.
        pairs: the first samples and their nearest training images, uint8 (pairs, 2, C, H, W).
        searched: how many training images were looked at, and how many there are.
    """

    samples: np.ndarray
    numbers: np.ndarray
    indices: np.ndarray
    heldout: np.ndarray
    pairs: np.ndarray
    searched: np.ndarray

    @property
    def threshold(self) -> float:
        """The distance below which samples are flagged; 0 without held-out images."""
        return float(np.quantile(self.heldout, SHARE)) if len(self.heldout) else 0.0

    @property
    def flagged(self) -> np.ndarray:
        """Which samples are."""
        return (self.samples < self.threshold) | (self.samples == 0)


def memorised(source: Source) -> Markup | None:
    """The distances, and the pairs that are nearest."""
    newest = sample_array(source)
    if newest is None or not source.training_images:
        return None
    path, images = newest
    found = _neighbours(source, path, images)
    if found is None:
        return None
    groups = [("samples", found.samples.tolist())]
    if len(found.heldout):
        groups.append(("held-out images", found.heldout.tolist()))
    mark = ("flagged below", found.threshold) if len(found.heldout) else None
    chart = histogram(
        "Distance to the nearest training image",
        groups,
        "root mean square of the difference, in grey levels of 255",
        mark=mark,
    )
    verdict = tag("p", _verdict(found), class_="verdict bad" if found.flagged.sum() > _allowed(found) else "verdict")
    return join(
        tag("div", chart, tag("div", verdict, note(_searched(found))), class_="charts"),
        tag("h3", "The nearest pairs: sample left, training image right"),
        tag("div", *(_pair(found, k) for k in range(len(found.pairs))), class_="pairs"),
        note("Samples: ", tag("code", f"samples/{path.name}"), ". Numbers are distances, as above."),
    )


def _allowed(found: Neighbours) -> float:
    """So many samples flagged are no surprise: the expected number and three standard deviations."""
    expected = SHARE * len(found.samples) if len(found.heldout) else 0.0
    return expected + 3 * expected**0.5


def _verdict(found: Neighbours) -> str:
    total, count, copies = len(found.samples), int(found.flagged.sum()), int((found.samples == 0).sum())
    if not len(found.heldout):
        return f"{copies} of {total} samples equal a training image. No held-out images tell what distance is usual."
    usual = f"than {1 - SHARE:.0%} of held-out images are (below {found.threshold:.1f})"
    same = f"{copies or 'none'} of them {'equal' if copies > 1 else 'equals'} one"
    return (
        f"{count} of {total} samples {'is' if count == 1 else 'are'} nearer to a training image {usual}; {same}. Of "
        f"{total} held-out images it would be {SHARE * total:.1f}. Smooth samples are near to many images, and "
        "no copies."
    )


def _searched(found: Neighbours) -> str:
    looked, there = found.searched.tolist()
    return (
        f"Looked at {looked:,} of {there:,} training images."
        if looked < there
        else f"Looked at all {there:,} training images."
    )


def _pair(found: Neighbours, k: int) -> Markup:
    sample, index, distance = int(found.numbers[k]), int(found.indices[k]), float(found.samples[k])
    image = picture(enlarged(list(found.pairs[k])), f"Sample {sample} beside training image {index}", longest=256)
    badge = tag("strong", "flagged", class_="badge") if found.flagged[k] else None
    return tag("figure", image, tag("figcaption", f"{distance:.1f} ", badge))


def _neighbours(source: Source, path: Path, images: np.ndarray) -> Neighbours | None:
    """What was found for these samples before, or is now; None without training data."""
    settings = [source.config.get("data"), source.training_images, images.shape]
    content = path.read_bytes() + json.dumps(settings, default=str).encode()
    key = hashlib.blake2b(content, digest_size=16).hexdigest()
    kept = source.folder / FILE
    try:
        with kept.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if str(file["key"]) == key:
                return Neighbours(**{name: file[name] for name in file.files if name != "key"})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # absent or damaged: it is made anew
    found = find_neighbours(source, torch.from_numpy(images[:MOST_SAMPLES]))
    if found is not None:
        with whole_file(kept) as draft:
            np.savez_compressed(draft, key=key, **vars(found))
    return found


def find_neighbours(source: Source, images: torch.Tensor) -> Neighbours | None:
    """Search the training images for the nearest of each sample, and of each held-out image."""
    training = source.dataset("train")
    if not len(training):
        return None
    chosen = some_of(training, source.training_images)
    mirror = bool(source.config.get("data", {}).get("random_flip"))
    own = nearest(images, training, chosen, mirror=mirror)
    order = torch.argsort(own.distances, stable=True)
    shown = order[:PAIRS]
    partners = picture_values(training, own.indices[shown].tolist())
    partners = torch.where(own.mirrored[shown].reshape(-1, 1, 1, 1), partners.flip(-1), partners)
    try:
        heldout = source.dataset("test")
        others = picture_values(heldout, some_of(heldout, MOST_HELD_OUT))
        reference = nearest(others, training, chosen, mirror=mirror).distances.numpy()
    except ValueError:  # nothing is held out
        reference = np.zeros(0)
    return Neighbours(
        own.distances[order].numpy(),
        order.numpy(),
        own.indices[order].numpy(),
        reference,
        torch.stack([images[shown], partners], 1).numpy(),
        np.array([len(chosen), len(training)]),
    )
