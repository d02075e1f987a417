"""Euler-Maruyama on the reverse-time SDE (arXiv 2011.13456, equation 6)."""

from typing import Any

from torch import Tensor

from samplers.base import Sampler, Score
from sde_lib import match_dims


class EulerMaruyama(Sampler):
    """x_s = x_t + [f x - g^2 s(x, t)] (s - t) + g sqrt(t - s) z, coefficients at t."""

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step."""
        drift_coeff, diffusion = score.sde.drift_coeff(t), score.sde.diffusion(t)
        drift = match_dims(drift_coeff, x) * x - match_dims(diffusion.square(), x) * score(x, t)
        noise = match_dims(diffusion * (t - s).sqrt(), x) * score.noise_like(x)
        return x + match_dims(s - t, x) * drift + noise, state
