"""DDIM: the exponential Euler step, with as much noise as wanted (arXiv 2010.02502)."""

from typing import Any

from torch import Tensor

from samplers.base import Sampler, Score


class DDIM(Sampler):
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z, with c = eta times the posterior's std.

    At eta = 0 it solves dx_hat/dn = eps_hat, with x_hat = x / alpha and n = sigma / alpha, by Euler steps in n: the
    probability-flow ODE with its linear part exact. At eta = 1 it is ancestral sampling.

    Args:
        eta: share of the noise, from 0 to 1.
        **options: of ``Sampler``.
    """

    natural_steps = 50
    natural_grid = "karras"

    def __init__(self, eta: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta!r}; DDIM's noise runs from 0 (deterministic) to 1 (ancestral sampling)")
        self.eta = eta
        self.order = None if eta else 1

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step."""
        sde = score.sde
        (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
        eps = score.eps(x, t)
        x0 = (x - sigma_t * eps) / alpha_t
        if self.eta == 0:
            return alpha_s * x0 + sigma_s * eps, state
        c = self.eta * sde.transition(s, t)[1] * sigma_s / sigma_t
        return alpha_s * x0 + (sigma_s**2 - c**2).sqrt() * eps + c * score.noise(x, t, s), state
