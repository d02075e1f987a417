"""Linear diffusion processes, and everything that follows from four formulas.

Notation, used in the whole project:

    x0          data; any trailing shape (B, *)
    x_t         its perturbed state at time t in [0, 1]; t = 0 is data, t = 1 is the prior
    alpha(t)    mean coefficient and
    sigma(t)    standard deviation of the kernel    p(x_t | x0) = N(alpha x0, sigma^2 I)
    f(t), g(t)  drift coefficient and diffusion of  dx = f(t) x dt + g(t) dw
    lambda(t)   log-SNR, log(alpha^2 / sigma^2), strictly decreasing
    eps         standard normal noise in            x_t = alpha x0 + sigma eps
    s(x, t)     score, grad_x log p_t(x) = -E[eps | x_t = x] / sigma

A linear SDE with a Gaussian kernel is determined by ``log_alpha``, ``sigma``, ``drift_coeff`` and ``diffusion``, bound
by alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2. A process is those four; perturbation, transitions, prior,
reverse SDE and probability-flow ODE (Song et al., arXiv 2011.13456) are derived here once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ScoreFn = Callable[[Tensor, Tensor], Tensor]
"""(x: (B, *), t: (B,)) -> score (B, *)."""


def match_dims(c: Tensor | float, x: Tensor) -> Tensor:
    """Shape a coefficient c of shape () or (B,) so that it multiplies x of shape (B, *), in x's dtype and device."""
    c = torch.as_tensor(c, dtype=x.dtype, device=x.device)
    return c.reshape(c.shape + (1,) * (x.ndim - c.ndim)) if c.ndim else c


def batch_time(t: Tensor | float, x: Tensor) -> Tensor:
    """Time of shape () or (B,), or a float, as a tensor (B,) in x's dtype and device.

    Raises:
        ValueError: t has neither one element nor one per sample.
    """
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] not in (1, x.shape[0])):
        raise ValueError(f"time has shape {tuple(t.shape)}; give () or (B,) with B = {x.shape[0]}, the batch of x")
    return t.expand(x.shape[0])


class SDE(ABC):
    """A forward process dx = f(t) x dt + g(t) dw on t in [0, 1].

    Attributes:
        T: end time.
        t_min: smallest time used by loss and likelihood (at t = 0 the score of data on a thin set diverges).
        breakpoints: times inside (0, T) at which a formula has a kink; ODE solvers step onto them.
    """

    T: float = 1.0
    t_min: float = 1e-5
    breakpoints: tuple[float, ...] = ()

    # The four formulas, elementwise in t.

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the mean coefficient alpha(t)."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the perturbation kernel."""

    @abstractmethod
    def drift_coeff(self, t: Tensor) -> Tensor:
        """f(t) = d log alpha / dt."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """g(t), with g^2 = (sigma^2)' - 2 f sigma^2."""

    # What follows from them.

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std^2 I) that stands in for p_T."""
        return float(self.sigma(torch.tensor(self.T, dtype=torch.float64)))

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha(t), sigma(t)), each of t's shape."""
        return self.log_alpha(t).exp(), self.sigma(t)

    def marginal_prob(self, x0: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Mean (B, *) and standard deviation (B,) of p(x_t | x0)."""
        alpha, sigma = self.marginal(batch_time(t, x0))
        return match_dims(alpha, x0) * x0, sigma

    def perturb(self, x0: Tensor, t: Tensor | float, eps: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps, shape (B, *)."""
        mean, std = self.marginal_prob(x0, t)
        return mean + match_dims(std, x0) * eps

    def sde(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Forward drift f(t) x, shape (B, *), and diffusion g(t), shape (B,)."""
        t = batch_time(t, x)
        return match_dims(self.drift_coeff(t), x) * x, self.diffusion(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) = log(alpha^2 / sigma^2), strictly decreasing."""
        return 2 * (self.log_alpha(t) - self.sigma(t).log())

    def time_from_log_snr(self, lam: Tensor) -> Tensor:
        """Inverse of ``log_snr``, by bisection in float64 on [0, 2T]; values outside its range there are clamped."""
        target = lam.to(torch.float64)
        low, high = torch.zeros_like(target), torch.full_like(target, 2 * self.T)
        for _ in range(64):
            middle = (low + high) / 2
            early = self.log_snr(middle) > target
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return ((low + high) / 2).to(lam.dtype)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The law of x_t given x_s for s <= t: N(ratio x_s, std^2 I).

        ratio = alpha_t / alpha_s and std^2 = sigma_t^2 - ratio^2 sigma_s^2 = -sigma_t^2 expm1(lambda_t - lambda_s): the
        second form keeps its digits when s is close to t, with lambda in float64.

        Args:
            s: earlier time, shape () or (B,).
            t: later time, of the same shape.

        Returns:
            (ratio, std), each of the times' shape and dtype.
        """
        dtype = torch.promote_types(s.dtype, t.dtype)
        s, t = s.to(torch.float64), t.to(torch.float64)
        ratio = (self.log_alpha(t) - self.log_alpha(s)).exp()
        lost = torch.where(s < t, -torch.expm1(self.log_snr(t) - self.log_snr(s)), 0.0)
        return ratio.to(dtype), (self.sigma(t) * lost.clamp(min=0).sqrt()).to(dtype)

    def prior_sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw z ~ N(0, prior_std^2 I) of the given shape (B, *)."""
        return self.prior_std * torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype)

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log density of the prior at z (B, *), in nats, shape (B,)."""
        z = z.flatten(1)
        normaliser = z.shape[1] * (math.log(self.prior_std) + 0.5 * math.log(2 * math.pi))
        return -0.5 * (z / self.prior_std).square().sum(1) - normaliser

    def reverse(self, score_fn: ScoreFn, probability_flow: bool = False) -> "ReverseSDE":
        """The reverse-time SDE, or with ``probability_flow`` the ODE of the same marginals."""
        return ReverseSDE(self, score_fn, probability_flow)

    def __repr__(self) -> str:
        public = [f"{k}={v:g}" for k, v in vars(self).items() if isinstance(v, int | float) and not k.startswith("_")]
        return f"{type(self).__name__}({', '.join(public)})"


class ReverseSDE:
    """The time reversal of a process, given its score (Anderson 1982; arXiv 2011.13456, equations 6 and 13).

    Reverse SDE:           dx = [f x - g^2 s(x, t)] dt + g dw   (dt < 0)
    Probability-flow ODE:  dx = [f x - g^2 s(x, t) / 2] dt

    Args:
        forward: the forward process.
        score_fn: (x, t) -> score.
        probability_flow: choose the ODE; its diffusion is 0.
    """

    def __init__(self, forward: SDE, score_fn: ScoreFn, probability_flow: bool = False) -> None:
        self.forward = forward
        self.score_fn = score_fn
        self.probability_flow = probability_flow

    def sde(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Drift (B, *) and diffusion (B,) at (x, t)."""
        t = batch_time(t, x)
        drift, diffusion = self.forward.sde(x, t)
        weight = 0.5 if self.probability_flow else 1.0
        drift = drift - match_dims(weight * diffusion.square(), x) * self.score_fn(x, t)
        return drift, torch.zeros_like(diffusion) if self.probability_flow else diffusion
