"""Where the noise of a sampler comes from: one generator, or for each image a path of its own.

A sampler asks for standard normal noise in three ways: the start x_T, the noise of the step from t to s, and fresh
noise of a corrector. A source may draw each anew (``GeneratorNoise``), or fix it for each image and each stretch of
time (``PathNoise``), so that an image depends neither on its batch nor on how time is cut into steps.

The place of a step is given on a clock c in [0, 1] that falls with time and is the same for equal noise levels:
c = sigma / (alpha + sigma).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from samplers.brownian import BrownianPath
from samplers.random_streams import normal
from sde_lib import SDE
from sde_lib.arguments import is_whole

_START, _FRESH = 1, 2
"""Names of the streams of an image beside that of its path, which is 0."""


class Noise(ABC):
    """A source of standard normal noise."""

    def begin(self) -> "Noise":
        """The source for one run: a run neither follows from earlier ones nor changes later ones."""
        return self

    @abstractmethod
    def start(
        self, sde: SDE, shape: Sequence[int], device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Tensor:
        """Draw x_T (B, *) from the prior of the process."""

    @abstractmethod
    def between(self, x: Tensor, high: float, low: float) -> Tensor:
        """Noise of x's shape for the step between two places of the clock; asked once for a step."""

    @abstractmethod
    def fresh(self, x: Tensor) -> Tensor:
        """Noise of x's shape, independent of all other."""

    @abstractmethod
    def path(self, x: Tensor) -> BrownianPath:
        """A Brownian path for each image of x, for methods in which each has steps of its own, and repeats some."""


class GeneratorNoise(Noise):
    """Every draw is new, from one generator (torch's global one if it is None)."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def start(
        self, sde: SDE, shape: Sequence[int], device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Tensor:
        """The process's own draw, by default on the generator's device."""
        device = self.generator.device if device is None and self.generator is not None else device
        return sde.prior_sample(shape, generator=self.generator, device=device, dtype=dtype)

    def between(self, x: Tensor, high: float, low: float) -> Tensor:
        """The same as ``fresh``."""
        return self.fresh(x)

    def fresh(self, x: Tensor) -> Tensor:
        """The next draw."""
        return torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)

    def path(self, x: Tensor) -> BrownianPath:
        """Paths with seeds from the generator."""
        return BrownianPath(torch.randint(2**63 - 1, (len(x),), generator=self.generator, device=x.device), x.shape[1:])


class PathNoise(Noise):
    """Image k has the start and the Brownian path of seeds[k], whatever its batch, device and number of steps.

    The noise of a step is the normalised increment (W(high) - W(low)) / sqrt(high - low) of its path. So runs with 50
    and with 100 steps follow the same path, and approach the same image as the steps shrink. Noise is drawn in float32.

    Args:
        seeds: one whole number in [0, 2^63) for each image.

    Raises:
        ValueError: a seed is not such a number.
    """

    def __init__(self, seeds: Sequence[int] | Tensor) -> None:
        given = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
        for seed in given:
            if not is_whole(seed) or not 0 <= seed < 2**63:
                raise ValueError(f"seed {seed!r}: give a whole number in [0, 2^63) for each image")
        self.seeds = torch.tensor(given, dtype=torch.int64)
        self._path: BrownianPath | None = None
        self._draws = 0

    def begin(self) -> "PathNoise":
        """Anew, from the same seeds."""
        return PathNoise(self.seeds)

    def start(
        self, sde: SDE, shape: Sequence[int], device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Tensor:
        """prior_std times the start of each image."""
        if len(self.seeds) != shape[0]:
            raise ValueError(f"noise for {len(self.seeds)} images, but {shape[0]} samples were asked for")
        self.seeds = self.seeds.to(device or "cpu")  # now, so that no later step waits for it
        z = normal(self.seeds, shape[1:], (_START,))
        return sde.prior_std * z.to(dtype or torch.get_default_dtype())

    def between(self, x: Tensor, high: float, low: float) -> Tensor:
        """The normalised increment of the path."""
        path = self.path(x)
        if high <= low:  # no step, no noise
            return torch.zeros_like(x)
        return (path.increment(high, low) / math.sqrt(high - low)).to(x.dtype)

    def fresh(self, x: Tensor) -> Tensor:
        """The next draw of each image's second stream."""
        self._draws += 1
        return normal(self._seeds(x), x.shape[1:], (_FRESH, self._draws)).to(x.dtype)

    def path(self, x: Tensor) -> BrownianPath:
        """The path of each image."""
        if len(self.seeds) != len(x):
            raise ValueError(f"noise for {len(self.seeds)} images, but x has {len(x)}")
        if self._path is None or self._path.seeds.device != x.device:
            self._path = BrownianPath(self._seeds(x), x.shape[1:])
        return self._path

    def _seeds(self, x: Tensor) -> Tensor:
        """The seeds on x's device, moved there once."""
        if self.seeds.device != x.device:
            self.seeds = self.seeds.to(x.device)
        return self.seeds
