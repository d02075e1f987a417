"""Euler-Maruyama on the reverse-time SDE (arXiv 2011.13456, equation 6)."""

from typing import Any

from torch import Tensor

from samplers.base import Sampler, Score


class EulerMaruyama(Sampler):
    """x_s = x_t + [f x - g^2 s(x, t)] (s - t) + g sqrt(t - s) z, coefficients at t."""

    divides_by_alpha = False

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step."""
        f, g = score.sde.drift_coeff(t), score.sde.diffusion(t)
        drift = f * x - g**2 * score(x, t)
        return x + (s - t) * drift + g * (t - s).sqrt() * score.noise(x, t, s), state
