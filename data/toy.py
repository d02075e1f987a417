"""Distributions in the plane: small enough to see, and to check against their laws.

Each is a shape S of mean zero with E|S|^2 = 2, that is unit variance per axis on average, blurred by noise of
standard deviation b that keeps this so:

    x = sqrt(1 - b^2) S + b n,    n ~ N(0, I)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from data.dataset import TensorDataset
from data.randomness import make_generator
from sde_lib.registry import lookup


def checkerboard(size: int, generator: torch.Generator) -> Tensor:
    """Uniform on the 8 cells (i, j), i + j even, of the 4 x 4 board that covers [-sqrt 3, sqrt 3]^2."""
    column = torch.randint(4, (size,), generator=generator)
    row = 2 * torch.randint(2, (size,), generator=generator) + column % 2
    cell = torch.stack([column, row], 1) + torch.rand(size, 2, generator=generator)
    return math.sqrt(3) * (cell / 2 - 1)


def moons(size: int, generator: torch.Generator) -> Tensor:
    """Two half circles of radius 1: the upper one about the origin, the lower one about (1, 1/2)."""
    angle = math.pi * torch.rand(size, generator=generator)
    lower = torch.randint(2, (size,), generator=generator)
    sign = 1 - 2 * lower
    points = torch.stack([lower + sign * torch.cos(angle), lower / 2 + sign * torch.sin(angle)], 1)
    variances = 3 / 4 + 9 / 16 - 1 / math.pi  # of x and of y
    return (points - torch.tensor([1 / 2, 1 / 4])) / math.sqrt(variances / 2)


def rings(size: int, generator: torch.Generator) -> Tensor:
    """Four circles about the origin, equally likely, with radii in the ratio 1 : 2 : 3 : 4."""
    radius = (1 + torch.randint(4, (size,), generator=generator)) * math.sqrt(2 / 7.5)
    angle = 2 * math.pi * torch.rand(size, generator=generator)
    return radius.unsqueeze(1) * torch.stack([torch.cos(angle), torch.sin(angle)], 1)


def swissroll(size: int, generator: torch.Generator) -> Tensor:
    """The spiral t (cos t, sin t) with t uniform on [3/2 pi, 9/2 pi]."""
    t = math.pi * (1.5 + 3 * torch.rand(size, generator=generator))
    mean = torch.tensor([2, 2 / (3 * math.pi)])
    points = t.unsqueeze(1) * torch.stack([torch.cos(t), torch.sin(t)], 1) - mean
    return points / math.sqrt((9.75 * math.pi**2 - float(mean.square().sum())) / 2)


def gaussians(size: int, generator: torch.Generator) -> Tensor:
    """Eight points on the circle of radius sqrt 2, equally likely."""
    angle = math.pi / 4 * torch.randint(8, (size,), generator=generator)
    return math.sqrt(2) * torch.stack([torch.cos(angle), torch.sin(angle)], 1)


class Blurred(NamedTuple):
    """A shape and the standard deviation of the noise that blurs it."""

    shape: Callable[[int, torch.Generator], Tensor]
    blur: float


DISTRIBUTIONS: dict[str, Blurred] = {
    "checkerboard": Blurred(checkerboard, 0.0),
    "moons": Blurred(moons, 0.05),
    "rings": Blurred(rings, 0.05),
    "swissroll": Blurred(swissroll, 0.05),
    "gaussians": Blurred(gaussians, 0.1),
}


class Toy(TensorDataset):
    """Continuous data of shape (2,), unlabelled.

    Args:
        split: "train" or "test": two independent draws.
        distribution: a key of ``DISTRIBUTIONS``.
        size: number of points.
        seed: of the draw.

    Raises:
        ValueError: unknown split or distribution, or ``size`` less than 1.
    """

    def __init__(
        self, split: str = "train", *, distribution: str = "checkerboard", size: int = 20_000, seed: int = 0
    ) -> None:
        shape, blur = lookup(DISTRIBUTIONS, distribution, "toy distribution")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        split = lookup({"train": "train", "test": "test"}, split, "split of toy")
        generator = make_generator(seed, "toy", distribution, split)
        points = shape(size, generator)
        noise = torch.randn(size, 2, generator=generator)
        super().__init__(f"toy/{distribution}", math.sqrt(1 - blur**2) * points + blur * noise)
