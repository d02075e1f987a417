"""What every sampler shares: the grid, the loop, the count of evaluations and the final denoising.

A sampler sees a process and a score (x, t) -> score; it does not know which. A method is one file with a ``step`` from
t to s < t. Methods that remember earlier steps carry that in an explicit state, made by ``init``; methods that choose
their own steps replace ``run`` (``own_steps``).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from samplers.noise import GeneratorNoise, Noise
from samplers.threshold import THRESHOLDS, thresholded
from samplers.time_grid import time_grid
from samplers.whole_numbers import whole_steps
from sde_lib import SDE, ScoreFn, lookup
from sde_lib.arguments import is_whole


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

    A score function that evaluates its network more than once for a sample, as guidance does, says how often the last
    call did in an attribute ``evaluations``.

    Time is a float64 scalar on the CPU: coefficients are computed in float64, and only the state has the precision and
    the device of x. Nothing here waits for the device then. (Adaptive methods look at errors, and must.)
    """

    def __init__(self, sde: SDE, score_fn: ScoreFn, noise: Noise | None = None, counted: ScoreFn | None = None) -> None:
        self.sde = sde
        self.source = GeneratorNoise() if noise is None else noise
        self.nfe = 0
        self._score_fn = score_fn
        self._counted = score_fn if counted is None else counted
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self._bad_score: Tensor | None = None  # time at which the score of a finite x was first not finite; -1: never
        self._bad_state: Tensor | None = None  # time at which x was first not finite

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Score (B, *) at one time () for the whole batch, or at a time for each sample (B,).

        Raises:
            ValueError: the score function returned another shape.
            TypeError: it returned something else than a tensor of floating-point numbers.
        """
        times = t.to(x) if t.ndim else torch.full((len(x),), float(t), dtype=x.dtype, device=x.device)
        value = self._score_fn(x, times)
        self.nfe += getattr(self._counted, "evaluations", 1)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"the score is {kind}; a score function (x, t) returns a floating-point tensor")
        if value.shape != x.shape:
            raise ValueError(
                f"the score of x {tuple(x.shape)} has shape {tuple(value.shape)}; a score function "
                "(x: (B, *), t: (B,)) returns the shape of x"
            )
        value = value.to(x.dtype)
        self._watch(x, value, times)
        self._last = (x, t, value)
        return value

    def _watch(self, x: Tensor, value: Tensor, times: Tensor) -> None:
        """Note where a state or its score was first not finite; what comes of it later is not noted."""
        state, score = (v.reshape(len(x), -1).isfinite().all(1) for v in (x, value))
        never = times.new_full((), -1.0)
        bad_score, bad_state = torch.where(state & ~score, times, never).max(), torch.where(~state, times, never).max()
        if self._bad_score is not None and self._bad_state is not None:
            sound = (self._bad_score < 0) & (self._bad_state < 0)
            bad_score = torch.where(sound, bad_score, self._bad_score)
            bad_state = torch.where(sound, bad_state, self._bad_state)
        self._bad_score, self._bad_state = bad_score, bad_state

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
        score, state = (-1.0 if bad is None else float(bad) for bad in (self._bad_score, self._bad_state))
        if score >= 0:
            raise SamplingError(
                f"the score is not finite at t = {score:g}: an untrained or diverged network gives this; check its "
                "training loss, use an earlier checkpoint, or a larger t_end if the time is near 0"
            )
        bad = int((~x.reshape(len(x), -1).isfinite().all(1)).sum())
        if bad or state >= 0:
            where = f"before t = {state:g}" if state >= 0 else "at the end"
            raise SamplingError(
                f"{bad} of {len(x)} samples are not finite {where} though their scores were: the steps are too large; "
                "use more steps, another grid, a threshold, or smaller amounts of noise"
            )


class Sampler(ABC):
    """From the prior at T to data, over a grid of times.

    Attributes:
        order: of convergence in the step size; None for stochastic and for adaptive methods.

    Args:
        steps: number of steps; None for the method's own choice.
        grid: a key of ``samplers.GRIDS``, or a decreasing sequence of times; None for the method's own choice.
        t_end: time at which the steps stop; None for 0.001 (long runs of some methods: 0.0003).
        t_start: time at which they start, and to which ``x_init`` belongs; None for T.
        denoise: return E[x0 | x] at t_end, by one more evaluation, rather than x with its last noise.
        rho: exponent of the grid "karras" (None: 7), or extent of the dense part of "asinh" (None: 2).
        threshold: what keeps the denoised estimate in the data's range: "none", "clip" or "dynamic".
        limit: the data lie in [-limit, limit], for the threshold.
        quantile: of |x0| in each image, for the threshold "dynamic".
    """

    natural_steps: ClassVar[int] = 500
    natural_grid: ClassVar[str] = "uniform"
    divides_by_alpha: bool = True  # the method needs a signal that the state's dtype resolves
    order: int | None = None

    def __init__(
        self,
        steps: int | None = None,
        grid: str | Sequence[float] | Tensor | None = None,
        t_end: float | None = None,
        t_start: float | None = None,
        denoise: bool = True,
        rho: float | None = None,
        threshold: str = "none",
        limit: float = 1.0,
        quantile: float = 0.995,
    ) -> None:
        lookup(THRESHOLDS, threshold, "threshold")
        self.steps = whole_steps(self.natural_steps if steps is None else steps)
        self.grid = self.natural_grid if grid is None else grid
        self.t_end = self.natural_end if t_end is None else t_end
        self.t_start = t_start
        self.denoise = denoise
        self.rho = rho
        self.threshold = threshold
        self.limit = limit
        self.quantile = quantile
        if not (0 < limit < math.inf and (rho is None or 0 < rho < math.inf) and 0 < quantile <= 1):
            raise ValueError(
                f"limit is {limit}, rho {rho} and quantile {quantile}; give limit and rho above 0, quantile in (0, 1]"
            )

    def __repr__(self) -> str:
        settings = {k: v for k, v in vars(self).items() if isinstance(v, int | float | str) and not k.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"

    @property
    def natural_end(self) -> float:
        """Time at which the steps stop when none is given."""
        return 1e-3

    def time_grid(self, sde: SDE) -> Tensor:
        """Times that this sampler visits, float64 (steps + 1,)."""
        return time_grid(sde, self.grid, self.steps, self.t_end, self.t_start, self.rho)

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
        source = GeneratorNoise(generator) if noise is None else noise.begin()
        x = _start(sde, source, shape, x_init, device, dtype)
        self._require_signal(sde, times[0], x.dtype)
        bounded = thresholded(sde, score_fn, self.threshold, self.limit, self.quantile)
        score = Score(sde, bounded, source, counted=score_fn)
        x = self.run(score, x, times, self._reporter(score, callback))
        if self.denoise:
            x = score.denoise(x, times[-1])
        score.check(x)
        return SampleResult(x, score.nfe)

    def _require_signal(self, sde: SDE, t: Tensor, dtype: torch.dtype) -> None:
        """Raise ValueError where x0 = (x - sigma eps) / alpha would be rounding errors."""
        alpha, sigma = (float(c) for c in sde.marginal(t))
        if self.divides_by_alpha and alpha < (1e-13 if dtype == torch.float64 else 1e-5) * sigma:
            raise ValueError(
                f"at t = {float(t):g} {sde!r} leaves alpha / sigma = {alpha / sigma:.2g} of the signal, too little for "
                f"{dtype}: begin the grid later (such as '0.99, 0.9, ...'), use float64, or the sampler "
                "reverse_diffusion"
            )

    def _reporter(self, score: Score, callback: Callable[[Progress], None] | None) -> Report:
        if callback is None:
            return lambda t, x: None
        steps, done = self.step_count(score.sde), count()
        return lambda t, x: callback(Progress(next(done), steps, float(t), x, score.denoised))


def _start(
    sde: SDE,
    source: Noise,
    shape: Sequence[int],
    x_init: Tensor | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """The state at the grid's first time: a copy of ``x_init``, or a draw from the prior."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"the state would have dtype {dtype}; give x_init and dtype in floating point")
    if not isinstance(shape, Sequence) or not shape or not all(is_whole(n) and n > 0 for n in shape):
        raise ValueError(f"the shape of the samples is {shape!r}; give (B, *), whole numbers above 0")
    if x_init is None:
        x = source.start(sde, shape, device, dtype)
    elif tuple(x_init.shape) != tuple(shape):
        raise ValueError(f"x_init has shape {tuple(x_init.shape)}, but samples of {tuple(shape)} were asked for")
    else:
        x = x_init.to(device=device, dtype=dtype, copy=True)
    if not x.is_floating_point():
        raise ValueError(f"the state would have dtype {x.dtype}; give x_init and dtype in floating point")
    if x_init is not None and not x.isfinite().all():
        raise ValueError("x_init is not finite")
    return x
