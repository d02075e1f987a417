"""Variance-exploding SDE: the continuous limit of NCSN's geometric noise scales (arXiv 2011.13456, equation 9)."""

import math

import torch
from torch import Tensor

from sde_lib.arguments import require_positive
from sde_lib.sde import SDE


def require_sigmas(sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless 0 < sigma_min < sigma_max."""
    require_positive(sigma_min=sigma_min, sigma_max=sigma_max)
    if sigma_min >= sigma_max:
        raise ValueError(f"sigma_min = {sigma_min} is not below sigma_max = {sigma_max}")


class VESDE(SDE):
    """dx = sigma(t) sqrt(2 log(sigma_max / sigma_min)) dw.

    alpha = 1 and sigma(t) = sigma_min (sigma_max / sigma_min)^t.

    Args:
        sigma_min: noise at t = 0, above 0.
        sigma_max: noise at t = 1; about the largest distance between two data points (arXiv 2006.09011).
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        require_sigmas(sigma_min, sigma_max)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_min (sigma_max / sigma_min)^t."""
        return self.sigma_min * torch.exp(t * self._log_ratio)

    def drift_coeff(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """sigma(t) sqrt(2 log(sigma_max / sigma_min))."""
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def time_from_log_snr(self, lam: Tensor) -> Tensor:
        """Closed form: sigma = exp(-lambda / 2)."""
        return (-0.5 * lam - math.log(self.sigma_min)) / self._log_ratio
