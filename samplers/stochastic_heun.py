"""Heun's method with churn: EDM's stochastic sampler (arXiv 2206.00364, algorithm 2), for every process."""

import math
from typing import Any

import torch
from torch import Tensor

from samplers.base import Score
from samplers.heun import Heun


class StochasticHeun(Heun):
    """Before each step, raise the noise level n = sigma / alpha to n (1 + gamma) by fresh noise; then step by Heun.

    gamma = min(churn / steps, sqrt(2) - 1) while n lies in [churn_min, churn_max], else 0; the level never exceeds that
    of T. Together this is Langevin dynamics beside the flow, so the law is right for any churn as the steps grow.

    Args:
        churn: how much noise is replaced over the whole run, at least 0.
        churn_min: smallest n with churn.
        churn_max: largest n with churn.
        noise_scale: standard deviation of the added noise; EDM takes up to 1.007 against a network's loss of detail.
        **options: of ``Sampler``.
    """

    order = None

    def __init__(
        self,
        churn: float = 40.0,
        churn_min: float = 0.05,
        churn_max: float = 50.0,
        noise_scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not (churn >= 0 and 0 <= churn_min <= churn_max and noise_scale > 0):
            raise ValueError(
                f"churn is {churn} within [{churn_min}, {churn_max}] and noise_scale {noise_scale}; "
                "give churn >= 0, 0 <= churn_min <= churn_max, and noise_scale > 0"
            )
        self.churn = churn
        self.churn_min = churn_min
        self.churn_max = churn_max
        self.noise_scale = noise_scale

    def init(self, score: Score, x: Tensor, times: Tensor) -> float:
        """Gamma of a step within the range."""
        return min(self.churn / (len(times) - 1), math.sqrt(2) - 1)

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: float) -> tuple[Tensor, float]:
        """Churn from t back to t_hat >= t, then Heun from t_hat to s."""
        sde = score.sde
        n = torch.exp(-sde.log_snr(t) / 2)
        if state > 0 and self.churn_min <= n <= self.churn_max:
            t_hat = sde.time_from_log_snr(-2 * torch.log(n * (1 + state))).clamp(max=sde.T)
            n_hat = torch.exp(-sde.log_snr(t_hat) / 2)
            added = self.noise_scale * (n_hat**2 - n**2).clamp(min=0).sqrt()
            ratio = torch.exp(sde.log_alpha(t_hat) - sde.log_alpha(t))
            x = ratio * x + torch.exp(sde.log_alpha(t_hat)) * added * score.noise(x, t, s)
            t = t_hat
        return super().step(score, x, t, s, None)[0], state
