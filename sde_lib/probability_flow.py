"""The probability-flow ODE, in variables in which all linear processes are one (arXiv 2011.13456, section 4.3).

A state splits into data and noise, x = alpha x0_hat + sigma eps_hat. In the units and on the clock

    y = x / n,  n = sqrt(alpha^2 + sigma^2),      u = asinh(sigma / alpha),  so alpha / n = sech u, sigma / n = tanh u,

the ODE dx/dt = f x - g^2 s(x, t) / 2 of every process becomes

    dy/du = eps_hat(x, t) - tanh(u) y,        div_y (dy/du) = n div_x eps_hat - D tanh u,        eps_hat = -sigma s.

Here a variance-preserving process has y = x, and an exploding one loses its scale of 50 or 80; small noise and large
are resolved alike. For one tolerance this costs VE and EDM fewer evaluations than their own time, and errs less
(benchmarks/likelihood.md).
"""

import math
from typing import Any

import torch
from torch import Tensor

from sde_lib.arguments import require_positive
from sde_lib.ode import ODESolution, integrate
from sde_lib.sde import SDE, ScoreFn, batch_time


class Place:
    """A point of the clock: what the formulas above need there.

    Attributes:
        t: time, float64 scalar.
        sigma: sigma(t).
        norm: n.
        tanh: tanh u = sigma / n.
    """

    def __init__(self, sde: SDE, t: Tensor) -> None:
        alpha, self.sigma = sde.marginal(t)
        self.t = t
        self.norm = torch.hypot(alpha, self.sigma)
        self.tanh = self.sigma / self.norm

    def velocity(self, score: Tensor, y: Tensor) -> Tensor:
        """dy/du = -sigma s - tanh(u) y, shape of y (B, *)."""
        return -self.sigma.to(y) * score - self.tanh.to(y) * y

    def divergence(self, div_score: Tensor, dims: int) -> Tensor:
        """div_y (dy/du) = -n sigma div_x s - D tanh u, shape of the score's divergence."""
        return -(self.norm * self.sigma).to(div_score) * div_score - dims * self.tanh.to(div_score)


class Clock:
    """u = asinh(sigma / alpha) between two times of a process.

    Args:
        sde: the process.
        t0: where the flow starts.
        t1: where it ends.

    Raises:
        ValueError: a time is not in (0, T].
    """

    def __init__(self, sde: SDE, t0: float, t1: float) -> None:
        for t in (t0, t1):
            if not 0 < t <= sde.T:
                raise ValueError(f"time {t!r} is not in (0, {sde.T:g}], where the flow runs; data start at t_min")
        self.sde = sde
        self.t0, self.t1 = t0, t1
        self.u0, self.u1 = (self._of(t) for t in (t0, t1))

    def _of(self, t: float) -> float:
        log_snr = self.sde.log_snr(torch.tensor(t, dtype=torch.float64))
        return math.asinh(math.exp(-0.5 * float(log_snr)))

    def place(self, u: Tensor) -> Place:
        """The place at u, whose time never leaves the interval."""
        low, high = min(self.t0, self.t1), max(self.t0, self.t1)
        exact = u.to(torch.float64)
        t = self.sde.time_from_log_snr(-2 * exact.sinh().log()).clamp(low, high)
        for end, time in ((self.u0, self.t0), (self.u1, self.t1)):  # the inverse may miss an end by a rounding error
            t = torch.where(u == torch.tensor(end, dtype=u.dtype), time, t)
        return Place(self.sde, t)

    def time(self, u: float) -> float:
        """The time at u."""
        return float(self.place(torch.tensor(u, dtype=torch.float64)).t)

    def norms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scale n at the start and at the end, in x's dtype and device."""
        ends = torch.tensor([self.t0, self.t1], dtype=torch.float64)
        n0, n1 = Place(self.sde, ends).norm.to(x)
        return n0, n1


def transport(sde: SDE, score_fn: ScoreFn, x: Tensor, t0: float, t1: float, **solver: Any) -> ODESolution:
    """Move states along the probability-flow ODE from t0 to t1, in either direction.

    From t_min to T this encodes data as latent codes; from T to t_min it decodes them. Both are the same map, so an
    image survives the way there and back up to the solver's tolerance.

    Args:
        sde: the process.
        score_fn: (x, t) -> score.
        x: states (B, *) at t0, float.
        t0: start, in (0, T].
        t1: end, likewise.
        **solver: method, rtol, atol, steps, max_nfe of ``integrate``; tolerances are those of y.

    Raises:
        ValueError: x is not finite or not floating point, or a time or setting is not accepted.
        IntegrationError: the ODE could not be solved.
    """
    check_state(x)
    require_positive(**{name: solver[name] for name in ("rtol", "atol") if name in solver})
    clock = Clock(sde, t0, t1)
    n0, n1 = clock.norms(x)

    def flow(u: Tensor, y: Tensor) -> Tensor:
        at = clock.place(u)
        return at.velocity(score_fn(y * at.norm.to(y), batch_time(at.t, y)), y)

    with torch.no_grad():
        end, nfe = integrate(flow, x.detach() / n0, clock.u0, clock.u1, time_of=clock.time, **solver)
        return ODESolution(end * n1, nfe)


def check_state(x: Tensor) -> None:
    """Raise ValueError unless x (B, *) holds at least one sample of finite floating-point numbers."""
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}; give model inputs in floating point (dequantise pixels first)")
    if x.ndim < 1 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; give (B, *) with at least one sample")
    bad = x.numel() - int(x.isfinite().sum())
    if bad:
        raise ValueError(f"{bad} of the {x.numel()} values of x are not finite (nan or inf); leave those samples out")
