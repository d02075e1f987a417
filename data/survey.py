"""One look at every sample of a data set: what is unreadable, the values and their levels, copies, sizes, labels."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data.dataset import Dataset
from data.encoded_images import EncodedImages
from data.moments import Moments
from data.quantizer import Quantizer
from data.randomness import make_generator

BLOCK = 256
"""Samples that are looked at together."""


@dataclass(frozen=True)
class Survey:
    """What was found; a channel of vectors is a dimension, and values are in model units.

    Attributes:
        name: of the data set.
        total: its number of samples.
        read: those that were looked at and could be read.
        unreadable: place -> reason, of those that could not.
        quantizer: of the data set.
        mean: of each channel, float64 (C,).
        std: of each channel, float64 (C,).
        least: smallest value of each channel, (C,).
        most: largest value of each channel, (C,).
        levels: how many values of each channel have each level, int64 (C, L); None for continuous data.
        constant: indices of the images each of whose channels has one value.
        grey: whether the channels of every image are equal, and there are several.
        digests: hash of the values -> indices of the samples that have it; without constant images.
        sizes: width and height that the crop leaves of each image file before it is resized, (n, 2); None for others.
        labels: of the samples, as in ``Batch``; None without.
        num_classes: of the data set.
        label_names: of its classes or attributes; empty where they have none.
        sample: values of a random part of the samples, float32 (n, *).
        sample_labels: theirs.
        place: index -> the file of a sample, or its number where it has none.
    """

    name: str
    total: int
    read: int
    unreadable: dict[str, str]
    quantizer: Quantizer | None
    mean: Tensor
    std: Tensor
    least: Tensor
    most: Tensor
    levels: Tensor | None
    constant: Sequence[int]
    grey: bool
    digests: Mapping[bytes, Sequence[int]]
    sizes: Tensor | None
    labels: Tensor | None
    num_classes: int
    label_names: tuple[str, ...]
    sample: Tensor
    sample_labels: Tensor | None
    place: Callable[[int], str]

    @property
    def whole_mean(self) -> float:
        """Mean of all values."""
        return float(self.mean.mean())

    @property
    def whole_std(self) -> float:
        """Standard deviation of all values about their one mean."""
        return float((self.std.square() + (self.mean - self.mean.mean()).square()).mean().sqrt())

    @property
    def copies(self) -> int:
        """Samples that some other sample before them equals."""
        return sum(len(same) - 1 for same in self.digests.values())

    @property
    def equal(self) -> list[Sequence[int]]:
        """Indices of samples that equal each other, group by group, the largest group first."""
        return sorted((same for same in self.digests.values() if len(same) > 1), key=len, reverse=True)

    def shared_with(self, other: "Survey") -> list[tuple[int, int]]:
        """Samples of this data set that are in the other one too: index here, and the first one there."""
        both = self.digests.keys() & other.digests.keys()
        return sorted((index, other.digests[digest][0]) for digest in both for index in self.digests[digest])


class _Block(NamedTuple):
    """Some samples: their indices, values as stored, labels and sizes; and what could not be read."""

    indices: list[int]
    x: Tensor
    y: Tensor | None
    sizes: list[tuple[int, int]]
    unreadable: dict[str, str]


def survey(dataset: Dataset, *, num_images: int = 0, sample: int = 2000, seed: int = 0) -> Survey:
    """Read the samples of a data set, each once; nothing is written.

    Args:
        dataset: what to look at.
        num_images: how many samples, drawn at random; 0 for all.
        sample: of how many the values are kept, drawn at random.
        seed: of the draws.

    Raises:
        ValueError: there are no samples, or none of them can be read.
    """
    n = min(num_images or len(dataset), len(dataset))
    order = torch.randperm(len(dataset), generator=make_generator(seed, "survey"))
    indices = order[:n].sort().values.tolist()
    tally = _Tally(dataset, kept=set(order[: min(sample, n)].tolist()))
    bar = tqdm(total=n, desc=f"reading {dataset.name}", unit="sample", disable=None, dynamic_ncols=True, leave=False)
    with bar:
        for block in _blocks(dataset, indices):
            tally.add(block)
            bar.update(len(block.indices) + len(block.unreadable))
    if len(tally.unreadable) == n:
        reason = next(iter(tally.unreadable.values()), "it has no samples")
        looked = "nothing" if n == len(dataset) else f"none of the {n} samples that were looked at"
        raise ValueError(f"{looked} of {dataset.name} can be read: {reason}")
    return tally.result()


class _Tally:
    """What has been found so far."""

    def __init__(self, dataset: Dataset, kept: set[int]) -> None:
        self._dataset, self._kept, self._quantizer = dataset, kept, dataset.quantizer
        images = len(dataset.shape) == 3
        self.unreadable: dict[str, str] = {}
        self._read = 0
        self._constant: list[int] = []
        self._grey = images and dataset.shape[0] > 1
        self._digests: dict[bytes, list[int]] = {}
        self._sizes: list[tuple[int, int]] = []
        self._labels: list[Tensor] = []
        self._values: list[Tensor] = []
        self._value_labels: list[Tensor] = []
        self._moments = Moments()
        self._levels = None
        if self._quantizer is not None:
            self._levels = torch.zeros(dataset.shape[0], self._quantizer.levels, dtype=torch.int64)

    def add(self, block: _Block) -> None:
        self.unreadable |= block.unreadable
        if not block.indices:
            return
        x = block.x
        self._read += len(x)
        self._sizes += block.sizes
        same = torch.zeros(len(x), dtype=torch.bool)
        if x.ndim == 4:  # a vector has no pixels that could be of one value
            same = (x == x[:, :, :1, :1]).flatten(1).all(1)
            self._grey = self._grey and bool((x == x[:, :1]).all())
        for index, row, constant in zip(block.indices, x, same.tolist(), strict=True):
            alike = self._constant if constant else self._digests.setdefault(_digest(row), [])
            alike.append(index)
        if self._levels is None:
            self._moments.add(x.flatten(1))
        else:
            self._levels += _count(x, self._levels.shape[1])
        chosen = [row for row, index in enumerate(block.indices) if index in self._kept]
        self._values += x[chosen].unbind()
        if block.y is not None:
            self._labels.append(block.y)
            self._value_labels += block.y[chosen].unbind()

    def result(self) -> Survey:
        raw = torch.stack(self._values) if self._values else torch.empty(0, *self._dataset.shape)
        if self._quantizer is not None and self._levels is not None:
            self._moments.add_counted(self._quantizer.encode(torch.arange(self._quantizer.levels)), self._levels)
            raw = self._quantizer.encode(raw.to(self._quantizer.dtype))
        return Survey(
            name=self._dataset.name,
            total=len(self._dataset),
            read=self._read,
            unreadable=self.unreadable,
            quantizer=self._quantizer,
            mean=self._moments.mean,
            std=self._moments.std,
            least=self._moments.least,
            most=self._moments.most,
            levels=self._levels,
            constant=self._constant,
            grey=self._grey,
            digests=self._digests,
            sizes=torch.tensor(self._sizes).reshape(-1, 2) if self._sizes else None,
            labels=torch.cat(self._labels) if self._labels else None,
            num_classes=self._dataset.num_classes,
            label_names=self._dataset.label_names,
            sample=raw.float(),
            sample_labels=torch.stack(self._value_labels) if self._value_labels else None,
            place=partial(_place, self._dataset),
        )


def _blocks(dataset: Dataset, indices: Sequence[int]) -> Iterator[_Block]:
    """The samples in order; image files are decoded one by one in threads, so that each can fail on its own."""
    starts = range(0, len(indices), BLOCK)
    if not isinstance(dataset, EncodedImages):
        for start in starts:
            chosen = list(indices[start : start + BLOCK])
            yield _Block(chosen, *dataset.fetch(chosen), [], {})
        return
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="survey") as pool:
        for start in starts:
            chosen = list(indices[start : start + BLOCK])
            found = dict(zip(chosen, pool.map(lambda index: _decode(dataset, index), chosen), strict=True))
            good = [(index, *result) for index, result in found.items() if not isinstance(result, str)]
            faults = {_place(dataset, index): result for index, result in found.items() if isinstance(result, str)}
            rows = [index for index, *_ in good]
            x = torch.stack([pixels for _, pixels, _ in good]) if good else torch.empty(0)
            y = None if dataset.labels is None else dataset.labels[rows]
            yield _Block(rows, x, y, [size for *_, size in good], faults)


def _decode(dataset: EncodedImages, index: int) -> tuple[Tensor, tuple[int, int]] | str:
    """Pixels and size before resizing; or why the image cannot be used."""
    try:
        return dataset.decode(index), dataset.cropped_size(index)
    except (ValueError, OSError) as error:
        return str(error)


def _place(dataset: Dataset, index: int) -> str:
    if not isinstance(dataset, EncodedImages):
        return f"sample {index} of {dataset.name}"
    try:
        return dataset.place(index)
    except OSError:  # a shard that cannot be read, where the names are
        return f"image {index} of {dataset.name}"


def _digest(row: Tensor) -> bytes:
    return hashlib.blake2b(row.contiguous().numpy().tobytes(), digest_size=16).digest()


def _count(x: Tensor, levels: int) -> Tensor:
    """How many values of each channel of x (B, C, H, W) have each level, (C, levels)."""
    channels = x.transpose(0, 1).flatten(1).long()
    return torch.stack([torch.bincount(channel, minlength=levels) for channel in channels])
