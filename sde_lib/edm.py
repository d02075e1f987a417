"""The process of EDM in Karras's own time (arXiv 2206.00364, equation 5)."""

import torch
from torch import Tensor

from sde_lib.arguments import require_positive
from sde_lib.sde import SDE
from sde_lib.ve import require_sigmas


class EDMSDE(SDE):
    """alpha = 1 and sigma(t) = (a + t (b - a))^rho with a = sigma_min^(1/rho), b = sigma_max^(1/rho).

    Equal steps in t are Karras's noise levels: a uniform grid of this process is the EDM sampling schedule.

    Args:
        sigma_min: noise at t = 0, above 0.
        sigma_max: noise at t = 1.
        rho: how strongly equal steps in t crowd at small noise.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        require_sigmas(sigma_min, sigma_max)
        require_positive(rho=rho)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.rho = rho
        self._start = sigma_min ** (1 / rho)
        self._slope = sigma_max ** (1 / rho) - self._start

    def _warp(self, t: Tensor) -> Tensor:
        return self._start + t * self._slope

    def log_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """(a + t (b - a))^rho."""
        return self._warp(t) ** self.rho

    def drift_coeff(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(2 sigma sigma') with sigma' = rho (b - a) (a + t (b - a))^(rho - 1)."""
        growth = self.rho * self._slope * self._warp(t) ** (self.rho - 1)
        return torch.sqrt(2 * self.sigma(t) * growth)

    def time_from_log_snr(self, lam: Tensor) -> Tensor:
        """Closed form: sigma = exp(-lambda / 2)."""
        return (torch.exp(-0.5 * lam / self.rho) - self._start) / self._slope
