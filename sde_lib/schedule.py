"""The DDPM chain that a variance-preserving SDE becomes on N steps (arXiv 2006.11239; 2011.13456, appendix B)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_lib.arguments import is_whole
from sde_lib.cosine import CosineVPSDE
from sde_lib.sde import SDE
from sde_lib.vp import VPSDE


@dataclass(frozen=True)
class DDPMSchedule:
    """x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) noise, for i = 1 .. steps.

    Attributes:
        betas: float64, (steps,); betas_i = beta(t_i) / steps on t = linspace(0, 1, steps).
        alphas_cumprod: float64, (steps,); the product of 1 - beta, so x_i | x_0 ~ N(sqrt(a_i) x_0, (1 - a_i) I).
        times: float64, (steps,); the time at which the process's own kernel has this alphas_cumprod: what a network of
            continuous time is told on step i. The last ones may exceed 1 slightly, since the chain forgets faster.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    times: Tensor

    @property
    def steps(self) -> int:
        """Length of the chain."""
        return len(self.betas)


def ddpm_schedule(sde: SDE, steps: int = 500) -> DDPMSchedule:
    """Discretise a variance-preserving process: 0.1/500 .. 20/500 for the default VP SDE on 500 steps.

    Raises:
        TypeError: the process has no beta(t) and unit total variance (sub-VP, VE, EDM).
        ValueError: so few steps that some beta_i would reach 1.
    """
    if not isinstance(sde, VPSDE | CosineVPSDE):
        raise TypeError(f"a DDPM chain needs a variance-preserving process (VPSDE, CosineVPSDE); got {sde!r}")
    if not is_whole(steps) or steps < 2:
        raise ValueError(f"steps is {steps!r}; a chain needs a whole number of at least 2 steps")
    betas = sde.beta(torch.linspace(0, sde.T, steps, dtype=torch.float64)) / steps
    if betas.max() >= 1:
        raise ValueError(
            f"{steps} steps are too few for {sde!r}: beta_i would reach {betas.max():.3g}; "
            f"use more than {int(betas.max() * steps)} steps"
        )
    log_acp = torch.log1p(-betas).cumsum(0)
    log_snr = log_acp - torch.log(-torch.expm1(log_acp))
    return DDPMSchedule(betas, log_acp.exp(), sde.time_from_log_snr(log_snr))
