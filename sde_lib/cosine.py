"""The cosine schedule of Nichol and Dhariwal in continuous time (arXiv 2102.09672, equation 17)."""

import math

import torch
from torch import Tensor

from sde_lib.arguments import require_positive
from sde_lib.sde import SDE


class CosineVPSDE(SDE):
    """Variance preserving, with alpha(t) = cos(theta(t)) / cos(theta(0)), theta(t) = pi/2 (t + s) / (1 + s).

    beta(t) = 2 theta' tan(theta) has a pole at t = 1. The discrete schedule clips beta_i at 0.999 on its 1000 steps;
    here likewise beta(t) <= beta_max = 999, which is reached at t = 0.998 and makes every formula finite at t = 1.
    Before that time the schedule is the published one; from it on, beta is constant.

    Args:
        s: offset that keeps the noise at t = 0 from vanishing too fast, above 0.
        beta_max: bound on beta(t).
    """

    prior_std = 1.0

    def __init__(self, s: float = 0.008, beta_max: float = 999.0) -> None:
        require_positive(s=s, beta_max=beta_max)
        self.s = s
        self.beta_max = beta_max
        self._rate = math.pi / (2 * (1 + s))  # theta'
        self._theta0 = self._rate * s
        if beta_max <= 2 * self._rate * math.tan(self._theta0):
            raise ValueError(f"beta_max = {beta_max} lies below beta(0); use a larger one (the published clip is 999)")
        self._t_clip = 1 - math.atan(2 * self._rate / beta_max) / self._rate
        self.breakpoints = (self._t_clip,)

    def beta(self, t: Tensor) -> Tensor:
        """min(2 theta' tan(theta), beta_max), with tan(theta) as cot(pi/2 - theta)."""
        return 2 * self._rate / torch.tan(self._rate * (1 - t.clamp(max=self._t_clip)))

    def log_alpha(self, t: Tensor) -> Tensor:
        """Log cos(theta) - log cos(theta(0)), then a line of slope -beta_max / 2.

        The ratio of cosines has two forms: 1 - 2 sin(d/2)^2 - sin(d) tan(theta(0)) with d = theta - theta(0) keeps its
        digits at small t, and cos(theta) = sin(theta' (1 - t)) near t = 1.
        """
        inside = t.clamp(max=self._t_clip)
        d = self._rate * inside
        near_data = torch.log1p(-2 * torch.sin(d / 2).square() - torch.sin(d) * math.tan(self._theta0))
        near_prior = torch.sin(self._rate * (1 - inside)).log() - math.log(math.cos(self._theta0))
        return torch.where(inside < 0.5, near_data, near_prior) - 0.5 * self.beta_max * (t - inside)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2)."""
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def drift_coeff(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
        return -0.5 * self.beta(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(beta(t))."""
        return self.beta(t).sqrt()

    def time_from_log_snr(self, lam: Tensor) -> Tensor:
        """Closed form, in float64: tan(theta) = sqrt(sigma^2 + alpha^2 sin(theta(0))^2) / (alpha cos(theta(0))).

        It uses sigma^2 = 1 - alpha^2 = sigmoid(-lambda); beyond the clip log alpha is a line.
        """
        wide = lam.to(torch.float64)
        alpha2, sigma2 = torch.sigmoid(wide), torch.sigmoid(-wide)
        opposite = torch.sqrt(sigma2 + alpha2 * math.sin(self._theta0) ** 2)
        theta = torch.atan2(opposite, alpha2.sqrt() * math.cos(self._theta0))
        clip = wide.new_tensor(self._t_clip)
        beyond = clip - 2 * (torch.nn.functional.logsigmoid(wide) / 2 - self.log_alpha(clip)) / self.beta_max
        return torch.where(beyond > clip, beyond, (theta - self._theta0) / self._rate).to(lam.dtype)
