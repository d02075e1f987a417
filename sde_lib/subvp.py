"""Sub-VP SDE: VP's drift with a variance that stays below VP's (arXiv 2011.13456, equation 29)."""

import torch
from torch import Tensor

from sde_lib.sde import SDE
from sde_lib.vp import LinearBeta


class SubVPSDE(LinearBeta, SDE):
    """dx = -beta(t)/2 x dt + sqrt(beta(t) (1 - exp(-2 B(t)))) dw, with B the integral of beta.

    alpha^2 = exp(-B(t)) as for VP, and sigma = 1 - alpha^2.

    Args:
        beta_min: beta(0), above 0.
        beta_max: beta(1).
    """

    prior_std = 1.0

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__(beta_min, beta_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        """-B(t) / 2."""
        return -0.5 * self.integral(t)

    def sigma(self, t: Tensor) -> Tensor:
        """1 - exp(-B(t))."""
        return -torch.expm1(-self.integral(t))

    def drift_coeff(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
        return -0.5 * self.beta(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(beta(t) (1 - exp(-2 B(t))))."""
        return torch.sqrt(-self.beta(t) * torch.expm1(-2 * self.integral(t)))

    def time_from_log_snr(self, lam: Tensor) -> Tensor:
        """Closed form: alpha / sigma = 1 / (2 sinh(B/2)), so B = 2 asinh(exp(-lambda/2) / 2)."""
        return self.time_from_integral(2 * torch.asinh(0.5 * torch.exp(-0.5 * lam)))
