"""DPM-Solver++, multistep (arXiv 2211.01095): the probability-flow ODE in terms of the predicted data."""

import numpy as np
from torch import Tensor

from samplers.base import Score
from samplers.multistep import Measure, Multistep, gauss_legendre
from sde_lib import SDE


class DPMSolverPP(Multistep):
    """x_s = (sigma_s / sigma_t) x_t + sigma_s * integral of e^l x0_hat dl, with l = log(alpha / sigma).

    x0_hat is extrapolated as a polynomial in l through the last ``order`` predictions: order 1 is DDIM. The integral of
    the polynomial is exact; the published updates of orders 2 and 3 differ from it in the next order of the step (2)
    and by a factor 1/2 in the second difference (3), which makes them of order 2. A step to no noise is of order 1.
    """

    def predict(self, score: Score, x: Tensor, t: Tensor) -> Tensor:
        """x0_hat."""
        return score.denoise(x, t)

    def place(self, sde: SDE, t: Tensor) -> float:
        """Half the log-SNR."""
        return float(sde.log_snr(t)) / 2

    def measure(self, sde: SDE, t: Tensor, s: Tensor) -> Measure:
        """Carry sigma_s / sigma_t, mass alpha_s e^(l - l_s) dl."""
        alpha_s, sigma_s = (float(c) for c in sde.marginal(s))
        if sigma_s == 0:
            return Measure(0.0, np.array([self.place(sde, t)]), np.array([alpha_s]))
        end = self.place(sde, s)
        u, du = gauss_legendre(self.place(sde, t), end)
        return Measure(sigma_s / float(sde.sigma(t)), u, alpha_s * np.exp(u - end) * du)
