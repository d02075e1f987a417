"""Heun's method as EDM uses it (arXiv 2206.00364, algorithm 1), for every process."""

from typing import Any

from torch import Tensor

from samplers.base import Sampler, Score


class Heun(Sampler):
    """The trapezoidal rule for dx_hat/dn = eps_hat(x, t), with x_hat = x / alpha and n = sigma / alpha.

    Two evaluations in each step; a step to no noise at all is an Euler step.
    """

    natural_steps = 18
    natural_grid = "karras"
    order: int | None = 2

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Predict by Euler, correct by the mean of both slopes."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = score.sde.marginal(t), score.sde.marginal(s)
        step = sigma_s / alpha_s - sigma_t / alpha_t
        slope = score.eps(x, t)
        euler = alpha_s * (x / alpha_t + step * slope)
        if sigma_s == 0:
            return euler, state
        return euler + 0.5 * alpha_s * step * (score.eps(euler, s) - slope), state
