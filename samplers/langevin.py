"""Correctors: Langevin dynamics at a fixed time, which leaves p_t (nearly) invariant (arXiv 2011.13456, appendix G).

    x <- x + e s(x, t) + sqrt(2 e) z

The discretisation inflates the variance by a share of about snr^2, so a corrector trades bias against mixing.
"""

from collections.abc import Callable

from torch import Tensor

from samplers.base import Score

StepSize = Callable[[Score, Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""(score, score value, z, t, squared ratio of the last transition, snr) -> step size e, a scalar."""


def langevin(score: Score, value: Tensor, z: Tensor, t: Tensor, ratio2: Tensor, snr: float) -> Tensor:
    """Step size e = 2 r^2 (snr |z| / |s|)^2, norms averaged over the batch (arXiv 2011.13456, algorithms 4 and 5).

    By that average an image depends on its batch. A norm of its own would not do: near a mode |s| is 0.
    """
    z_norm, score_norm = (v.reshape(len(v), -1).norm(dim=1).mean() for v in (z, value))
    return 2 * ratio2 * (snr * z_norm / score_norm) ** 2


def annealed_langevin(score: Score, value: Tensor, z: Tensor, t: Tensor, ratio2: Tensor, snr: float) -> Tensor:
    """Step size e = 2 r^2 (snr sigma(t))^2, the same for every batch (arXiv 2006.09011).

    It is the rule of ``langevin`` with |z| / |s| replaced by sigma, its value where the noise dominates.
    """
    return 2 * ratio2 * (snr * score.sde.sigma(t)) ** 2


CORRECTORS: dict[str, StepSize] = {"langevin": langevin, "annealed_langevin": annealed_langevin}
"""Name -> rule for the step size."""


def correct(score: Score, x: Tensor, t: Tensor, ratio2: Tensor, rule: StepSize, snr: float) -> Tensor:
    """One Langevin update at time t, shape (B, *)."""
    value, z = score(x, t), score.source.fresh(x)
    size = rule(score, value, z, t, ratio2, snr)
    return x + size * value + (2 * size).sqrt() * z
