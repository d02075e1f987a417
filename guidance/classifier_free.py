"""Classifier-free guidance (arXiv 2207.12598), within an interval of noise levels (arXiv 2404.07724).

    s_w(x, t, y) = s(x, t) + w (s(x, t, y) - s(x, t)),

the score of p(x | y)^w p(x)^(1 - w) at t -> 0. w = 1 is the conditional score, w = 0 the unconditional one; the paper's
own strength is w - 1. The same network gives both scores, told the label and told nothing.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde_lib import SDE, match_dims
from sde_lib.sde import batch_time

UNKNOWN = -1
"""What stands for a class or an attribute that is not known."""

LabelledScoreFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x: (B, *), t: (B,), y: (B,) or (B, A)) -> score (B, *); entries of y that are -1 are unknown."""


class ClassifierFreeGuidance:
    """The guided score, as a function (x, t, y).

    Args:
        sde: the process.
        score_fn: of a network that knows labels, and does without where they are unknown.
        scale: w.
        low: smallest noise level sigma / alpha (EDM's sigma, for every process) with guidance; outside w is 1.
        high: largest.

    Attributes:
        evaluations: of the network for each sample, in the last call: 2 with guidance, else 1.

    Raises:
        ValueError: the scale is negative or not finite, or the interval is empty.
    """

    def __init__(
        self, sde: SDE, score_fn: LabelledScoreFn, scale: float, low: float = 0.0, high: float = math.inf
    ) -> None:
        if not 0 <= scale < math.inf:
            raise ValueError(f"the guidance scale is {scale}; give a number from 0 on (1 is no guidance)")
        if not 0 <= low < high:
            raise ValueError(f"the guidance interval is [{low}, {high}] in sigma / alpha; give 0 <= low < high")
        self.sde, self.score_fn = sde, score_fn
        self.scale, self.low, self.high = scale, low, high
        self.evaluations = 1

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Guided score (B, *), at times (B,), for labels (B,) or (B, A)."""
        w = self.weight(batch_time(t, x))
        if self.scale == 1 or (self._bounded and not (w != 1).any()):  # bounds are looked at: that waits for the device
            self.evaluations = 1
            return self.score_fn(x, t, y)
        self.evaluations = 2
        both = self.score_fn(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, torch.full_like(y, UNKNOWN)]))
        conditional, unconditional = both.chunk(2)
        return unconditional + match_dims(w, x) * (conditional - unconditional)

    def weight(self, t: Tensor) -> Tensor:
        """W at each time, (B,)."""
        alpha, sigma = self.sde.marginal(t)
        inside = (self.low * alpha <= sigma) & (sigma <= self.high * alpha)
        return torch.where(inside, self.scale, 1.0).to(t)

    @property
    def _bounded(self) -> bool:
        return self.low > 0 or self.high < math.inf
