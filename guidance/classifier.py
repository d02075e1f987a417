"""Classifier guidance (arXiv 2105.05233; arXiv 2011.13456, section 5): by any log-probability of what is wanted."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_lib import ScoreFn

LogProbFn = Callable[[Tensor, Tensor], Tensor]
"""(x: (B, *), t: (B,)) -> log p(y | x_t = x) up to a constant, (B,), differentiable in x."""


class ClassifierGuidance:
    """s(x, t) + scale grad_x log p(y | x_t = x), as a function (x, t).

    At scale 1 that is the score of p_t(x | y), if the classifier knows noisy images. One that knows clean ones only can
    be asked about E[x0 | x_t], which is what DPS does for measurements.

    Args:
        score_fn: of all images.
        log_prob_fn: the classifier, for the label that is wanted.
        scale: of its gradient.

    Raises:
        ValueError: the scale is not finite; when called, the log-probabilities are not (B,), or do not depend on x.
    """

    def __init__(self, score_fn: ScoreFn, log_prob_fn: LogProbFn, scale: float = 1.0) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"the guidance scale is {scale}; give a number")
        self.score_fn, self.log_prob_fn, self.scale = score_fn, log_prob_fn, scale

    @property
    def evaluations(self) -> int:
        """Of the network for each sample, in the last call; see ``samplers.Score``."""
        return getattr(self.score_fn, "evaluations", 1)

    def __call__(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Guided score (B, *); ``condition`` is what the score takes besides, such as labels ``y``."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            log_prob = self.log_prob_fn(leaf, t)
            if log_prob.shape != (len(x),):
                raise ValueError(
                    f"the classifier gave log-probabilities of shape {tuple(log_prob.shape)} for {len(x)} images; "
                    f"it must give ({len(x)},), for the wanted label alone"
                )
            if not log_prob.requires_grad:
                raise ValueError("the classifier's log-probability does not depend on x: it has no gradient to follow")
            (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
        return self.score_fn(x, t, **condition) + self.scale * gradient
