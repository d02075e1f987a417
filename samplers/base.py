"""What every sampler shares: the grid, the loop, the count of evaluations and the final denoising.

A sampler sees a process and a score (x, t) -> score; it does not know which. A method is one file with a ``step`` from
t to s < t. Methods that remember earlier steps carry that in an explicit state, made by ``init``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.time_grid import time_grid
from sde_lib import SDE, ScoreFn, match_dims


class SampleResult(NamedTuple):
    """Samples (B, *), and the number of network evaluations really made for each."""

    x: Tensor
    nfe: int


class Progress(NamedTuple):
    """What a callback is told after each step: its index, the number of steps, the time reached, and x there."""

    step: int
    steps: int
    t: float
    x: Tensor


class Score:
    """A score function with its process and the noise source, counting its evaluations.

    Time is a float64 scalar: coefficients are computed in float64, and only the state has the precision of x.
    """

    def __init__(self, sde: SDE, score_fn: ScoreFn, generator: torch.Generator | None = None) -> None:
        self.sde = sde
        self.generator = generator
        self.nfe = 0
        self._score_fn = score_fn

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Score at one time for the whole batch."""
        self.nfe += 1
        return self._score_fn(x, t.to(dtype=x.dtype, device=x.device).expand(len(x)))

    def noise_like(self, x: Tensor) -> Tensor:
        """Standard normal noise of x's shape."""
        return torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t = x] = (x + sigma^2 s) / alpha (Tweedie's formula); without noise that is x, and no evaluation."""
        alpha, sigma = self.sde.marginal(t)
        if sigma == 0:  # where the score of a network, -eps / sigma, is not finite
            return x
        return (x + match_dims(sigma.square(), x) * self(x, t)) / match_dims(alpha, x)


class Sampler(ABC):
    """From the prior at T to data, over a grid of times.

    Args:
        steps: number of steps.
        grid: a key of ``samplers.GRIDS``, or a decreasing sequence of times.
        t_end: time at which the steps stop.
        denoise: return E[x0 | x] at t_end, by one more evaluation, rather than x with its last noise.
    """

    def __init__(
        self,
        steps: int = 500,
        grid: str | Sequence[float] | Tensor = "uniform",
        t_end: float = 1e-3,
        denoise: bool = True,
    ) -> None:
        self.steps = steps
        self.grid = grid
        self.t_end = t_end
        self.denoise = denoise

    def time_grid(self, sde: SDE) -> Tensor:
        """Times that this sampler visits, float64 (steps + 1,)."""
        return time_grid(sde, self.grid, self.steps, self.t_end)

    def init(self, score: Score, x: Tensor, times: Tensor) -> Any:
        """State before the first step; None for one-step methods."""
        return None

    @abstractmethod
    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One transition from time t to s < t (float64 scalars).

        Returns:
            x at s, shape (B, *), and the new state.
        """

    @torch.no_grad()
    def sample(
        self,
        sde: SDE,
        score_fn: ScoreFn,
        shape: Sequence[int],
        *,
        x_init: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> SampleResult:
        """Draw samples.

        Args:
            sde: the process.
            score_fn: (x: (B, *), t: (B,)) -> score (B, *).
            shape: (B, *).
            x_init: state at the grid's first time, instead of a draw from the prior.
            generator: source of all noise, on the device of the samples.
            device: where to sample; by default that of ``x_init`` or the generator.
            dtype: floating-point type of the state.
            callback: called after every step.

        Raises:
            ValueError: ``x_init`` has another shape or is not floating point, or a setting of the sampler is out of
                range.
        """
        times = self.time_grid(sde)
        if x_init is None:
            device = generator.device if device is None and generator is not None else device
            x = sde.prior_sample(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(x_init.shape) != tuple(shape):
            raise ValueError(f"x_init has shape {tuple(x_init.shape)}, but samples of {tuple(shape)} were asked for")
        else:
            x = x_init.to(device=device, dtype=dtype)
        if not x.is_floating_point():
            raise ValueError(f"the state would have dtype {x.dtype}; give x_init and dtype in floating point")
        score = Score(sde, score_fn, generator)
        state = self.init(score, x, times)
        for i, (t, s) in enumerate(pairwise(times)):
            x, state = self.step(score, x, t, s, state)
            if callback is not None:
                callback(Progress(i, len(times) - 1, float(s), x))
        if self.denoise:
            x = score.denoise(x, times[-1])
        return SampleResult(x, score.nfe)
