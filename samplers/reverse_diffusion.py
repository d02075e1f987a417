"""Reverse diffusion: the reverse SDE discretised as the forward one is (arXiv 2011.13456, appendix E)."""

from typing import Any

from torch import Tensor

from samplers.base import Sampler, Score


class ReverseDiffusion(Sampler):
    """x_s = x_t - (r - 1) x_t + b s(x_t, t) + sqrt(b) z, where the process goes from x_s to x_t by N(r x_s, b I)."""

    divides_by_alpha = False

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step."""
        ratio, std = score.sde.transition(s, t)
        return (2 - ratio) * x + std**2 * score(x, t) + std * score.noise(x, t, s), state
