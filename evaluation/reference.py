"""Features of the data with which samples are compared: computed once, kept in a file, and known by what they are of.

A file holds the features and a description: which extractor with which weights, and a fingerprint of the pixels that it
saw. So it is taken for other data, another crop or another number of images by nobody, on whatever machine it was made.
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import Dataset, eval_batches, whole_file
from evaluation.extractors import Extractor, as_seen
from evaluation.fidelity import Reference
from evaluation.frechet import Moments
from evaluation.generate import Generated
from evaluation.generate_together import generate_together
from evaluation.parts import Parts

BATCH = 100
"""Images at once."""
IDENTITY = ("pixels", "images", "extractor", "weights")
"""What of a description must be the same."""


def describe_data(dataset: Dataset, images: int, split: str, **told: Any) -> dict[str, Any]:
    """What is known of the first images of a data set (0: all), with the fingerprint of their pixels."""
    count = min(images or len(dataset), len(dataset))
    return {
        "data": dataset.name,
        "split": split,
        "images": count,
        "shape": list(dataset.shape),
        **told,
        "pixels": fingerprint(dataset, count),
    }


def fingerprint(dataset: Dataset, images: int) -> str:
    """Twelve hexadecimal digits of the first images, in order, as an extractor sees them."""
    digest = hashlib.sha256()
    with tqdm(total=images, desc="reading the data", unit="sample", disable=None, leave=False) as bar:
        for raw in eval_batches(dataset, BATCH, indices=range(images)):
            seen = _seen(dataset, raw.x)
            digest.update(seen.contiguous().numpy().tobytes())
            bar.update(len(seen))
    digest.update(str([images, list(seen.shape[1:])]).encode())
    return digest.hexdigest()[:12]


def _seen(dataset: Dataset, x: Tensor) -> Tensor:
    quantizer = dataset.quantizer
    return as_seen(x if quantizer is None else quantizer.encode(x), quantizer)


def describe_reference(described: Mapping[str, Any], extractor: Extractor) -> dict[str, Any]:
    """What features are of: the data, as ``describe_data`` has it, and the extractor."""
    return {**described, "extractor": extractor.name, "weights": extractor.weights}


def reference_name(about: Mapping[str, Any]) -> str:
    """A name for the file, with a digest of what its features depend on."""
    key = hashlib.sha256(json.dumps([about[name] for name in IDENTITY]).encode()).hexdigest()[:12]
    data, extractor = (re.sub(r"[^\w.-]", "_", about[name]) for name in ("data", "extractor"))
    return f"reference_{data}_{extractor}_{key}.npz"


def make_reference(dataset: Dataset, extractor: Extractor, about: Mapping[str, Any], path: Path, parts: Parts) -> None:
    """Write the features of a data set; one that was killed goes on where it was.

    Args:
        dataset: the data.
        extractor: what makes the features.
        about: of ``describe_reference``.
        path: of the file.
        parts: where finished batches are kept meanwhile; for this process alone.
    """

    def batch(first: int, size: int) -> Generated:
        return Generated(extractor(_seen(dataset, dataset.fetch(range(first, first + size)).x)).values, 0)

    made = generate_together(batch, about["images"], batch_size=BATCH, parts=parts, work="features of the data")
    if made is not None:
        with whole_file(path) as draft:
            np.savez(draft, features=made.x.numpy(), about=np.array(json.dumps(about)))
    parts.remove()


def read_reference(path: Path, about: Mapping[str, Any]) -> Reference:
    """A file of features, which must be those that are described.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of something else.
    """
    content = _read(path)
    if not {"features", "about"} <= content.keys():
        raise ValueError(f"{path} holds {', '.join(content) or 'nothing'}, and no features of this program's")
    found = _description(content["about"])
    other = [name for name in (*IDENTITY, "data", "split", "shape") if found.get(name) != about.get(name)]
    if set(other) & set(IDENTITY):
        listing = ", ".join(f"{name} {found.get(name)!r} there and {about.get(name)!r} here" for name in other)
        raise ValueError(
            f"{path} is no reference for this evaluation: {listing}. Give one that was made with the same data, "
            "preprocessing, number of images and extractor, or leave evaluation.reference empty to make it"
        )
    features = content["features"].astype(content["features"].dtype.newbyteorder("="))
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != about["images"] or not features.size:
        raise ValueError(
            f"{path} holds features as {features.dtype} of shape {features.shape}, and not float32 ({about['images']}, "
            "D): it is damaged, or no file of this program's; delete it if it was made here, and it is made anew"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"{path} holds features that are not finite: delete it, and it is made anew")
    return Reference({**about, "file": path.name}, torch.from_numpy(features))


def _description(stored: np.ndarray) -> dict[str, Any]:
    """What a file says that it is of; nothing where that is not readable."""
    try:
        found = json.loads(str(stored))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def is_published(path: Path) -> bool:
    """Whether a file holds the moments ``mu`` and ``sigma`` alone, as other projects publish them."""
    return {"mu", "sigma"} <= _read(path).keys()


def published_reference(path: Path, extractor: Extractor) -> Reference:
    """Moments of Inception's features that others have published, of whose images nothing is known here.

    Raises:
        ValueError: the extractor is another, or the moments do not fit it.
    """
    if extractor.name != "inception":
        raise ValueError(
            f"{path} holds the moments mu and sigma of Inception's features, and the extractor is {extractor.name}; "
            "set evaluation.extractor=inception, or leave evaluation.reference empty"
        )
    content = _read(path)
    mean, covariance = (content[name].astype(np.float64) for name in ("mu", "sigma"))
    if mean.shape != (2048,) or covariance.shape != (2048, 2048):
        raise ValueError(
            f"{path} holds mu of shape {mean.shape} and sigma of {covariance.shape}; the FID has 2048 features"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    about = {"file": path.name, "sha256": digest, "extractor": "inception", "weights": "as published"}
    return Reference(about, None, Moments(mean, covariance))


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no reference {path}; give a file, or leave evaluation.reference empty")
    try:
        with path.open("rb") as file:  # which numpy would leave open if it is damaged
            content = np.load(file, allow_pickle=False)
            return dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {"array": content}
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is no whole .npz of numbers ({error}); delete it if it was made here, and it is made anew"
        ) from error
