"""Ancestral sampling: DDPM's sampler, for every process (arXiv 2006.11239, 2011.13456 appendix F)."""

from typing import Any

from torch import Tensor

from samplers.base import Sampler, Score
from sde_lib import lookup

VARIANCES = {"posterior": True, "beta": False}
"""Name -> whether the noise shrinks to the posterior's. DDPM's fixedsmall and fixedlarge."""


class Ancestral(Sampler):
    """x_s = (x_t + b s(x_t, t)) / r + c z, with x_t | x_s ~ N(r x_s, b I) the process's own transition.

    The mean is E[x_s | x_t], exact for the exact score. The variance c^2 is b sigma_s^2 / sigma_t^2, that of x_s given
    x_t and x_0 ("posterior", exact for a single data point), or b ("beta", exact for unit-variance noise data).

    Args:
        variance: "posterior" or "beta".
        **options: of ``Sampler``.
    """

    def __init__(self, variance: str = "posterior", **options: Any) -> None:
        super().__init__(**options)
        self.posterior = lookup(VARIANCES, variance, "variance")

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mean and noise of one step."""
        sde = score.sde
        ratio, std = sde.transition(s, t)
        mean = (x + std**2 * score(x, t)) / ratio
        spread = std * sde.sigma(s) / sde.sigma(t) if self.posterior else std
        return mean + spread * score.noise(x, t, s), state
