"""Random numbers that belong to an image: a function of (seed, purpose, index of the image, repeat) and nothing else.

So a value depends neither on the batch, nor on which process computes it, nor on whether the run was interrupted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data import make_generator


@dataclass(frozen=True)
class Draws:
    """The streams of the images of a batch.

    Attributes:
        seed: of the evaluation.
        indices: of the images in the data set, B in all.
        repeat: which of several independent draws.
        device: where the numbers are wanted; they are drawn on the CPU, and are the same everywhere.
    """

    seed: int
    indices: Sequence[int]
    repeat: int = 0
    device: torch.device | str = "cpu"

    def of_image(self) -> "Draws":
        """Those that are the same in every repeat."""
        return replace(self, repeat=0)

    def uniform(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Uniform in [0, 1), (B, *shape), float32."""
        return self.each(purpose, lambda generator: torch.rand(tuple(shape), generator=generator))

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal, (B, *shape), float32."""
        return self.each(purpose, lambda generator: torch.randn(tuple(shape), generator=generator))

    def each(self, purpose: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Of any law: what ``draw`` makes of the image's own stream, (B, *)."""
        generators = (make_generator(self.seed, purpose, index, self.repeat) for index in self.indices)
        return torch.stack([draw(generator) for generator in generators]).to(self.device)
