"""Variance-preserving SDE: the continuous limit of DDPM (arXiv 2011.13456, equation 11)."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sde_lib.arguments import require_positive
from sde_lib.sde import SDE


def require_betas(beta_min: float, beta_max: float) -> None:
    """Raise ValueError unless 0 < beta_min <= beta_max."""
    require_positive(beta_min=beta_min, beta_max=beta_max)
    if beta_min > beta_max:
        raise ValueError(f"beta_min = {beta_min} exceeds beta_max = {beta_max}; beta(t) must not decrease")


class LinearBeta:
    """The linear schedule beta(t) = beta_min + t (beta_max - beta_min), with its integral and the inverse of that."""

    def __init__(self, beta_min: float, beta_max: float) -> None:
        require_betas(beta_min, beta_max)
        self.beta_min = beta_min
        self.beta_max = beta_max

    def beta(self, t: Tensor) -> Tensor:
        """The schedule itself."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def time_from_integral(self, total: Tensor) -> Tensor:
        """The time t at which B(t) = total: the root of a quadratic, without cancellation."""
        slope = self.beta_max - self.beta_min
        return 2 * total / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * total))


class VPSDE(LinearBeta, SDE):
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, with beta linear from beta_min to beta_max.

    alpha^2 = exp(-B(t)) with B the integral of beta, and sigma^2 = 1 - alpha^2.

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
        """sqrt(1 - alpha^2), by expm1 so that float32 keeps its digits at small t."""
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def drift_coeff(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
        return -0.5 * self.beta(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(beta(t))."""
        return self.beta(t).sqrt()

    def time_from_log_snr(self, lam: Tensor) -> Tensor:
        """Closed form: alpha^2 = sigmoid(lambda), so B = softplus(-lambda)."""
        return self.time_from_integral(softplus(-lam, threshold=50))
