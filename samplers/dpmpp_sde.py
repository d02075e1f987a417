"""SDE-DPM-Solver++ (arXiv 2211.01095): the reverse SDE with its linear part exact, in terms of the predicted data."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.base import Score
from samplers.dpmpp import DPMSolverPP
from samplers.multistep import History, Measure, gauss_legendre
from sde_lib import SDE


class SDEDPMSolverPP(DPMSolverPP):
    """The family of reverse SDEs with eta times the variance of the reverse process's noise; eta = 0 is the ODE.

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s (1 + eta) * integral of e^(-(1 + eta)(l_s - l)) x0_hat dl
          + sigma_s sqrt(1 - e^(-2 eta h)) z,

    with l = log(alpha / sigma) and h = l_s - l_t. x0_hat is a polynomial in l through the last ``order`` predictions.

    Args:
        order: 1 or 2.
        eta: 1 is the reverse SDE of the process; 0 to 10.
        **options: of ``Sampler``.
    """

    natural_steps = 50
    orders = (1, 2)

    def __init__(self, order: int = 2, eta: float = 1.0, **options: Any) -> None:
        super().__init__(order, **options)
        if not 0 <= eta <= 10:
            raise ValueError(f"eta is {eta!r}; give 0 (the ODE) to 10 (1 is the reverse SDE)")
        self.eta = eta
        self.order = None

    def measure(self, sde: SDE, t: Tensor, s: Tensor) -> Measure:
        """Carry (sigma_s / sigma_t) e^(-eta h), mass alpha_s (1 + eta) e^((1 + eta)(l - l_s)) dl."""
        if sde.sigma(s) == 0:
            return super().measure(sde, t, s)
        start, end, rate = self.place(sde, t), self.place(sde, s), 1 + self.eta
        u, du = gauss_legendre(start, end)
        mass = float(sde.marginal(s)[0]) * rate * np.exp(rate * (u - end)) * du
        return Measure(float(sde.sigma(s) / sde.sigma(t)) * np.exp(self.eta * (start - end)), u, mass)

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: History) -> tuple[Tensor, History]:
        """The deterministic part, and the noise."""
        x, state = super().step(score, x, t, s, state)
        if self.eta == 0:
            return x, state
        h = (score.sde.log_snr(s) - score.sde.log_snr(t)) / 2
        spread = score.sde.sigma(s) * (-torch.expm1(-2 * self.eta * h)).sqrt()
        return x + spread * score.noise(x, t, s), state
