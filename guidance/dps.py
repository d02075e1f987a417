"""Diffusion posterior sampling (Chung et al., arXiv 2209.14687)."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from guidance.posterior import LikelihoodGuidance
from sde_lib import match_dims


class DPS(LikelihoodGuidance):
    """W = scale / v: x0 is taken for known, and the spread of its measurement for that of the residual.

        v = max(|y - A x0_hat|^2 / m, noise_std^2),    m the number of values measured.

    The paper's step, zeta / |y - A x0_hat|, belongs to one of 1000 DDPM steps. A score knows of no steps; this v is the
    variance that makes the residual likeliest, so the same scale serves every process, noise and range of values.

    Args:
        *arguments: of ``Posterior``.
        scale: of the guidance.
        **options: of ``Posterior``.
    """

    def __init__(self, *arguments: Any, scale: float = 1.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not 0 <= scale < math.inf:
            raise ValueError(f"the scale of the guidance is {scale}; give a number from 0 on")
        self.scale = scale

    def weigh(self, residual: Tensor, t: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:
        """See ``LikelihoodGuidance.weigh``."""
        v = residual.square().flatten(1).sum(1) / self.operator.count(residual)
        return self.scale * residual / match_dims(v.clamp(min=max(self.noise_std**2, TINY)), residual)


TINY = 1e-12
"""Keeps a residual that is 0 from being divided by 0."""
