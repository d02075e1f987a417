"""What every sampler shares: the grid, the loop, the count of evaluations and the final denoising.

A sampler sees a process and a score (x, t) -> score; it does not know which. A method is one file with a ``step`` from
t to s < t. Methods that remember earlier steps carry that in an explicit state, made by ``init``; methods that choose
their own steps replace ``run``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from samplers.noise import GeneratorNoise, Noise
from samplers.threshold import THRESHOLDS, thresholded
from samplers.time_grid import time_grid
from sde_lib import SDE, ScoreFn, lookup


class SamplingError(RuntimeError):
    """A run that gave no usable samples: the message says where it failed, and what to try."""


class SampleResult(NamedTuple):
    """Samples (B, *), and the number of network evaluations really made for each."""

    x: Tensor
    nfe: int


class Progress(NamedTuple):
    """What a callback is told after each step.

    Attributes:
        step: index of the step.
        steps: how many there are; None where the method finds out as it goes.
        t: the time reached (of the image farthest behind, where each has its own).
        x: the state there (B, *).
        denoised: E[x0 | x_t] as the step's last evaluation gave it (B, *); the evaluation lies in the step or at its
            end.
    """

    step: int
    steps: int | None
    t: float
    x: Tensor
    denoised: Tensor


Report = Callable[[Tensor | float, Tensor], None]
"""(time reached, x there) -> None; called after every step."""


class Score:
    """A score function with its process and its source of noise, counting and checking the evaluations.

    Time is a float64 scalar on the CPU: coefficients are computed in float64, and only the state has the precision and
    the device of x. Nothing here waits for the device.
    """

    def __init__(self, sde: SDE, score_fn: ScoreFn, noise: Noise | None = None) -> None:
        self.sde = sde
        self.source = GeneratorNoise() if noise is None else noise
        self.nfe = 0
        self._score_fn = score_fn
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self._broken: Tensor | None = None  # time at which the score was first not finite; -1: never

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Score (B, *) at one time () for the whole batch, or at a time for each sample (B,).

        Raises:
            ValueError: the score function returned another shape.
        """
        self.nfe += 1
        times = t.to(x) if t.ndim else torch.full((len(x),), float(t), dtype=x.dtype, device=x.device)
        value = self._score_fn(x, times)
        if value.shape != x.shape:
            raise ValueError(
                f"the score of x {tuple(x.shape)} has shape {tuple(value.shape)}; a score function "
                "(x: (B, *), t: (B,)) returns the shape of x"
            )
        broken = x.new_full((), -1.0) if self._broken is None else self._broken
        self._broken = torch.where(value.isfinite().all() | (broken >= 0), broken, times.max())
        self._last = (x, t, value)
        return value

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """Predicted noise -sigma s (B, *)."""
        return -self.sde.sigma(t) * self(x, t)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t = x] = (x + sigma^2 s) / alpha (Tweedie's formula); without noise that is x, and no evaluation."""
        if self.sde.sigma(t) == 0:  # where the score of a network, -eps / sigma, is not finite
            return x
        self(x, t)
        return self.denoised

    @property
    def denoised(self) -> Tensor:
        """E[x0 | x_t] by the last evaluation."""
        if self._last is None:
            raise RuntimeError("there is no denoised estimate before the first evaluation")
        x, t, value = self._last
        alpha, sigma = self.sde.marginal(t)
        if t.ndim:
            alpha, sigma = (c.reshape(-1, *[1] * (x.ndim - 1)).to(x) for c in (alpha, sigma))
        return (x + sigma**2 * value) / alpha

    def noise(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Standard normal noise (B, *) for the step from t to s; ask once in a step."""
        return self.source.between(x, float(self.clock(t)), float(self.clock(s)))

    def clock(self, t: Tensor) -> Tensor:
        """The clock of the noise, sigma / (alpha + sigma), of t's shape."""
        alpha, sigma = self.sde.marginal(t)
        return sigma / (alpha + sigma)

    def check(self, x: Tensor) -> None:
        """Raise SamplingError unless every score, and the result, is finite (this waits for the device)."""
        broken = -1.0 if self._broken is None else float(self._broken)
        if broken >= 0:
            raise SamplingError(
                f"the score is not finite at t = {broken:g}: an untrained or diverged network gives this; check its "
                "training loss, use an earlier checkpoint, or a larger t_end if the time is near 0"
            )
        if not x.isfinite().all():
            bad = int((~x.flatten(1).isfinite().all(1)).sum())
            raise SamplingError(
                f"{bad} of {len(x)} samples are not finite though their scores were: the steps are too large; use more "
                "steps, another grid, or a threshold"
            )


class Sampler(ABC):
    """From the prior at T to data, over a grid of times.

    Attributes:
        order: of convergence in the step size; None for stochastic and for adaptive methods.

    Args:
        steps: number of steps; None for the method's own choice.
        grid: a key of ``samplers.GRIDS``, or a decreasing sequence of times; None for the method's own choice.
        t_end: time at which the steps stop.
        denoise: return E[x0 | x] at t_end, by one more evaluation, rather than x with its last noise.
        rho: exponent of the grid "karras" (None: 7), or extent of the dense part of "asinh" (None: 2).
        threshold: what keeps the denoised estimate in the data's range: "none", "clip" or "dynamic".
        limit: the data lie in [-limit, limit], for the threshold.
        quantile: of |x0| in each image, for the threshold "dynamic".
    """

    natural_steps: ClassVar[int] = 500
    natural_grid: ClassVar[str] = "uniform"
    order: int | None = None

    def __init__(
        self,
        steps: int | None = None,
        grid: str | Sequence[float] | Tensor | None = None,
        t_end: float = 1e-3,
        denoise: bool = True,
        rho: float | None = None,
        threshold: str = "none",
        limit: float = 1.0,
        quantile: float = 0.995,
    ) -> None:
        self.steps = self.natural_steps if steps is None else steps
        self.grid = self.natural_grid if grid is None else grid
        self.t_end = t_end
        self.denoise = denoise
        self.rho = rho
        self.threshold = threshold
        self.limit = limit
        self.quantile = quantile
        lookup(THRESHOLDS, threshold, "threshold")
        if not (limit > 0 and (rho is None or rho > 0) and 0 < quantile <= 1):
            raise ValueError(
                f"limit is {limit}, rho {rho} and quantile {quantile}; give limit and rho above 0, quantile in (0, 1]"
            )

    def time_grid(self, sde: SDE) -> Tensor:
        """Times that this sampler visits, float64 (steps + 1,)."""
        return time_grid(sde, self.grid, self.steps, self.t_end, rho=self.rho)

    def init(self, score: Score, x: Tensor, times: Tensor) -> Any:
        """State before the first step; None for one-step methods."""
        return None

    @abstractmethod
    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One transition from time t to s < t (float64 scalars).

        Returns:
            x at s, shape (B, *), and the new state.
        """

    def run(self, score: Score, x: Tensor, times: Tensor, report: Report) -> Tensor:
        """All steps, from x at times[0] to x at times[-1]."""
        state = self.init(score, x, times)
        for i in range(len(times) - 1):
            t, s = times[i], times[i + 1]
            x, state = self.step(score, x, t, s, state)
            report(s, x)
        return x

    def step_count(self, sde: SDE) -> int | None:
        """Number of steps that ``run`` reports; None where the method finds out as it goes."""
        return len(self.time_grid(sde)) - 1

    @torch.no_grad()
    def sample(
        self,
        sde: SDE,
        score_fn: ScoreFn,
        shape: Sequence[int],
        *,
        x_init: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> SampleResult:
        """Draw samples.

        Args:
            sde: the process.
            score_fn: its score, (x: (B, *), t: (B,)) -> (B, *).
            shape: (B, *).
            x_init: state at the grid's first time, instead of a draw from the prior.
            generator: source of all noise, on the device of the samples.
            noise: another source of all noise, such as ``PathNoise(seeds)``, which gives each image its own.
            device: where to sample; by default that of ``x_init`` or the generator.
            dtype: floating-point type of the state.
            callback: called after every step.

        Raises:
            ValueError: ``x_init`` has another shape or is not floating point, both sources of noise are given, or a
                setting of the sampler is out of range.
            SamplingError: the score or the samples are not finite.
        """
        if generator is not None and noise is not None:
            raise ValueError("give generator or noise as the source of noise, not both")
        times = self.time_grid(sde)
        source = GeneratorNoise(generator) if noise is None else noise
        if x_init is None:
            x = source.start(sde, shape, device, dtype)
        elif tuple(x_init.shape) != tuple(shape):
            raise ValueError(f"x_init has shape {tuple(x_init.shape)}, but samples of {tuple(shape)} were asked for")
        else:
            x = x_init.to(device=device, dtype=dtype)
        if not x.is_floating_point():
            raise ValueError(f"the state would have dtype {x.dtype}; give x_init and dtype in floating point")
        score = Score(sde, thresholded(sde, score_fn, self.threshold, self.limit, self.quantile), source)
        x = self.run(score, x, times, self._reporter(score, callback))
        if self.denoise:
            x = score.denoise(x, times[-1])
        score.check(x)
        return SampleResult(x, score.nfe)

    def _reporter(self, score: Score, callback: Callable[[Progress], None] | None) -> Report:
        if callback is None:
            return lambda t, x: None
        steps, done = self.step_count(score.sde), count()
        return lambda t, x: callback(Progress(next(done), steps, float(t), x, score.denoised))
