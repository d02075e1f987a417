"""Random numbers that belong to a sample: the same in whatever batch, and on whatever process, it is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.randomness import make_generator


@dataclass(frozen=True)
class Draws:
    """The streams of images of a data set: functions of (seed, purpose, index of the image, repeat) and nothing else.

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


@dataclass(frozen=True)
class StepDraws:
    """The streams of a training step: functions of (seed, step, purpose, place of the sample in the batch).

    The processes that share a batch, and the parts into which it is cut, each take the numbers of their own places; so
    the batch has the same numbers however it is shared. They are drawn on the device: those of a GPU are others. On a
    CPU each place has a stream of its own, and no number is drawn in vain; a GPU draws those of the whole batch at
    once, since there it is the launch that costs.

    Attributes:
        seed: of the run.
        step: 0, 1, 2, ...
        batch: samples of the whole batch.
        places: of the samples at hand in it, b in all.
        device: where the numbers are drawn.
    """

    seed: int
    step: int
    batch: int
    places: range
    device: torch.device | str = "cpu"

    def uniform(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Uniform in [0, 1), (b, *shape), float32."""
        return self._fill(purpose, torch.empty(len(self.places), *shape, device=self.device), Tensor.uniform_)

    def normal_like(self, purpose: str, x: Tensor) -> Tensor:
        """Standard normal, of the shape and dtype of x (b, *)."""
        out = torch.empty_like(x, device=self.device, memory_format=torch.contiguous_format)
        return self._fill(purpose, out, Tensor.normal_)

    def _fill(self, purpose: str, out: Tensor, law: Callable[..., Tensor]) -> Tensor:
        if out.is_cuda:
            return self.rows(purpose, lambda g: law(out.new_empty(self.batch, *out.shape[1:]), generator=g))
        for row, place in zip(out, self.places, strict=True):
            law(row, generator=self._generator(purpose, place))
        return out

    def rows(self, purpose: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Rows of these places, of what ``draw`` makes for the whole batch: for what is small, or drawn together."""
        drawn = draw(self._generator(purpose))
        return drawn[self.places.start : self.places.stop : self.places.step]

    def chunk(self, parts: int) -> "list[StepDraws]":
        """Those of the parts into which ``Tensor.chunk`` cuts the samples; their number must divide b."""
        size = len(self.places) // parts
        return [replace(self, places=self.places[part * size : (part + 1) * size]) for part in range(parts)]

    def _generator(self, purpose: str, *place: int) -> torch.Generator:
        return make_generator(self.seed, purpose, self.step, *place, device=self.device)
