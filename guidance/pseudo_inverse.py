"""Pseudo-inverse guidance, PiGDM (Song et al., "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023)."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from guidance.posterior import LikelihoodGuidance


class PseudoInverse(LikelihoodGuidance):
    """W = (r^2 A A^T + noise_std^2 I)^-1: given x_t, x0 is taken for normal about x0_hat with covariance r^2 I.

        r^2 = d^2 sigma^2 / (alpha^2 d^2 + sigma^2),    d the standard deviation of the data.

    Exact for data of law N(m, d^2 I); the paper takes d = 1. Without noise W A^T is r^-2 times the pseudo-inverse.

    Args:
        *arguments: of ``Posterior``.
        sigma_data: d, in model units.
        **options: of ``Posterior``.
    """

    def __init__(self, *arguments: Any, sigma_data: float = 0.5, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data is {sigma_data}; give the standard deviation of the data, above 0")
        self.sigma_data = sigma_data

    def weigh(self, residual: Tensor, t: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:
        """See ``LikelihoodGuidance.weigh``."""
        alpha, sigma = self.sde.marginal(t)
        variance = (self.sigma_data * sigma) ** 2 / ((alpha * self.sigma_data) ** 2 + sigma**2)
        return self.operator.solve(residual, variance, self.noise_std**2)
