"""DEIS: the probability-flow ODE with the predicted noise extrapolated by a polynomial (arXiv 2204.13902)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.base import Score
from samplers.multistep import Measure, Multistep, gauss_legendre
from sde_lib import SDE, lookup

VARIABLES: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "log_snr": lambda sde, half: half,
    "time": lambda sde, half: sde.time_from_log_snr(2 * half),
    "rho": lambda sde, half: torch.exp(-half),
}
"""Name -> the variable in which the predicted noise is a polynomial, as a function of l = log(alpha / sigma): l itself,
t, or n = sigma / alpha = e^-l."""


LONG = 24
"""Steps from which on the error of stopping at t = 0.001 would exceed that of the steps."""


class DEIS(Multistep):
    """x_s = (alpha_s / alpha_t) x_t + alpha_s * integral of eps_hat dn, with n = sigma / alpha.

    eps_hat is extrapolated as a polynomial through the last ``order`` predictions: order 1 is DDIM. (The paper counts
    from 0: its tAB3 is order 4 with the variable "time".) The first steps of order 4 are of order 3, and bound the
    convergence by that, at a small constant. On the grid "asinh" rho is by default the number of points less 1, at
    least 1: more points want evener steps.

    Args:
        order: number of predictions that the polynomial passes through, 1 to 4; None: 2 in runs of less than 8 steps,
            3 in less than 16, else 4.
        variable: of the polynomial: "log_snr", "time" (tAB-DEIS, whose own grid is "quadratic") or "rho" (rhoAB-DEIS).
        **options: of ``Sampler``.
    """

    natural_grid = "asinh"
    orders = (1, 2, 3, 4)

    def __init__(self, order: int | None = None, variable: str = "log_snr", **options: Any) -> None:
        super().__init__(4 if order is None else order, **options)
        self.order = min(self._points, 3)
        self.chosen = None if order is None else self._points
        self.variable = lookup(VARIABLES, variable, "variable")
        if self.rho is None and isinstance(self.grid, str) and self.grid == "asinh":
            self.rho = max(self.points(self.steps) - 1, 1)

    @property
    def natural_end(self) -> float:
        """0.001, in long runs 0.0003."""
        return 3e-4 if self.steps >= LONG else super().natural_end

    def points(self, steps: int) -> int:
        """The order that was asked for, or what is best for so many steps (docs/samplers.md)."""
        return self.chosen or (2 if steps < 8 else 3 if steps < 16 else 4)

    def predict(self, score: Score, x: Tensor, t: Tensor) -> Tensor:
        """eps_hat."""
        return score.eps(x, t)

    def place(self, sde: SDE, t: Tensor) -> float:
        """The variable at t."""
        return float(self.variable(sde, sde.log_snr(t) / 2))

    def measure(self, sde: SDE, t: Tensor, s: Tensor) -> Measure:
        """Carry alpha_s / alpha_t, mass alpha_s dn, with a quadrature in l, in which all is smooth."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ([float(c) for c in sde.marginal(u)] for u in (t, s))
        carry = alpha_s / alpha_t
        if sigma_s == 0:
            return Measure(carry, np.array([self.place(sde, t)]), np.array([-carry * sigma_t]))
        half, step = gauss_legendre(np.log(alpha_t / sigma_t), np.log(alpha_s / sigma_s))
        place = self.variable(sde, torch.from_numpy(half)).numpy()
        return Measure(carry, place, -alpha_s * np.exp(-half) * step)
