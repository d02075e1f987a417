"""The nearest images of a data set, in pixel space: is a sample one of the training images?

The distance of two images a and b of D values on 0 .. 255 is the root mean square of their difference,

    d(a, b) = |a - b|_2 / sqrt(D)

and so in grey levels of 255. Images above ``LARGEST_SIDE`` are averaged down before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from data import Dataset

LARGEST_SIDE = 64
"""Pixels of a side above which images are averaged down: a copy stays one, and the search stays short."""
CHUNK = 2**23
"""Values of the images that are compared at once."""


@dataclass(frozen=True)
class Nearest:
    """For each of Q images the nearest one of a data set.

    Attributes:
        distances: d, float64 (Q,).
        indices: of the nearest image in the data set, int64 (Q,).
        mirrored: whether it is nearest as its mirror image, bool (Q,).
    """

    distances: Tensor
    indices: Tensor
    mirrored: Tensor


def nearest(images: Tensor, dataset: Dataset, indices: Sequence[int], *, mirror: bool = False) -> Nearest:
    """Search a data set exhaustively; of equally near images the first wins.

    Args:
        images: picture values 0 .. 255, (Q, C, H, W).
        dataset: images of that shape.
        indices: of the images of the data set that are looked at.
        mirror: look at each as it is and mirrored left to right, as training with flips does.

    Raises:
        ValueError: the shapes differ, or there is nothing to search.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(dataset.shape):
        raise ValueError(f"images of shape {tuple(images.shape[1:])} cannot be compared with those of {dataset.shape}")
    if not len(indices):
        raise ValueError(f"there are no images of {dataset.name!r} to compare with")
    queries = _vectors(images)
    best = torch.full((len(queries),), torch.inf, dtype=torch.float64)
    found = torch.zeros(len(queries), dtype=torch.int64)
    flipped = torch.zeros(len(queries), dtype=torch.bool)
    size = max(1, CHUNK // max(1, images[0].numel()))
    for start in range(0, len(indices), size):
        chosen = torch.tensor(indices[start : start + size])
        levels = picture_values(dataset, chosen.tolist())
        for mirrored in (False, True) if mirror else (False,):
            vectors = _vectors(levels.flip(-1) if mirrored else levels)
            square = queries.square().sum(1)[:, None] + vectors.square().sum(1) - 2 * queries @ vectors.T
            least, place = square.min(1)  # whole numbers, exact in float64, but for images that were averaged down
            nearer = least < best
            best = torch.where(nearer, least, best)
            found = torch.where(nearer, chosen[place], found)
            flipped = torch.where(nearer, torch.tensor(mirrored), flipped)
    return Nearest((best.clamp(min=0) / queries.shape[1]).sqrt(), found, flipped)


def picture_values(dataset: Dataset, indices: Sequence[int]) -> Tensor:
    """Images of a data set as picture values 0 .. 255, uint8 (B, C, H, W), as samples are stored."""
    if dataset.quantizer is None:
        raise ValueError(f"{dataset.name!r} has no images")
    return dataset.quantizer.to_uint8(dataset.quantizer.encode(dataset.fetch(indices).x))


def _vectors(images: Tensor) -> Tensor:
    """Float64 (B, D), of images no larger than ``LARGEST_SIDE``."""
    x = images.double()
    height, width = (min(side, LARGEST_SIDE) for side in x.shape[2:])
    return functional.adaptive_avg_pool2d(x, (height, width)).flatten(1)


def some_of(dataset: Dataset, most: int) -> range:
    """Numbers of at most so many of its samples, evenly spaced; in shards, which are read in turn, the first ones."""
    count = len(dataset)
    return range(min(most, count)) if dataset.shards else range(0, count, max(1, -(-count // most)))
