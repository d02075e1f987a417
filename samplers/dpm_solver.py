"""DPM-Solver, single-step: exponential Runge-Kutta methods in the half log-SNR (arXiv 2206.00927)."""

from typing import Any

import torch
from torch import Tensor

from samplers.base import Sampler, Score
from samplers.whole_numbers import known_order

ORDERS = (1, 2, 3)


class DPMSolver(Sampler):
    """x_s = (alpha_s / alpha_t) x_t - alpha_s * integral of e^(-l) eps_hat dl, with l = log(alpha / sigma).

    The integral takes eps_hat at l_t and at intermediate places l_t + r h of the step h = l_s - l_t: none (order 1,
    which is DDIM), r = 1/2 (order 2), r = 1/3 and 2/3 (order 3). A step makes ``order`` evaluations. A step to no
    noise at all, where h is infinite, is of order 1.

    Args:
        order: 1, 2 or 3.
        **options: of ``Sampler``.
    """

    natural_steps = 10
    natural_grid = "log_snr"

    def __init__(self, order: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.order = known_order(order, ORDERS, "DPM-Solver")

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step of the chosen order (equation 3.7, algorithms 1 and 2)."""
        sde, eps = score.sde, score.eps(x, t)
        alpha_t, sigma_t = sde.marginal(t)
        if sde.sigma(s) == 0:
            return sde.marginal(s)[0] * (x - sigma_t * eps) / alpha_t, state
        h = (sde.log_snr(s) - sde.log_snr(t)) / 2

        def place(r: float) -> Tensor:
            return sde.time_from_log_snr(sde.log_snr(t) + 2 * r * h)

        def advance(u: Tensor, r: float, eps: Tensor, slope: Tensor | float = 0.0) -> Tensor:
            """To u at l_t + r h, with eps_hat = eps + slope * (l - l_t) / h."""
            alpha, sigma = sde.marginal(u)
            growth = torch.expm1(r * h)
            return alpha / alpha_t * x - sigma * (growth * eps + (growth / (r * h) - 1) * r * slope)

        if self.order == 1:
            return advance(s, 1.0, eps), state
        if self.order == 2:
            middle = place(1 / 2)
            return advance(s, 1.0, score.eps(advance(middle, 1 / 2, eps), middle)), state
        first, second = place(1 / 3), place(2 / 3)
        change = score.eps(advance(first, 1 / 3, eps), first) - eps
        change = score.eps(advance(second, 2 / 3, eps, 3 * change), second) - eps
        return advance(s, 1.0, eps, 1.5 * change), state
