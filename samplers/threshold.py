"""Keeping the denoised estimate x0_hat in the range of the data: a wrapper of the score, for any sampler.

With x0_hat = (x + sigma^2 s) / alpha put into range, the score becomes (alpha x0_hat - x) / sigma^2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sde_lib import SDE, ScoreFn, lookup, match_dims

Rule = Callable[[Tensor, float, float], Tensor]
"""(x0_hat (B, *), limit, quantile) -> x0_hat within [-limit, limit]."""


def clip(x0: Tensor, limit: float, quantile: float) -> Tensor:
    """Cut off at +-limit (DDPM's ``clip_denoised``)."""
    return x0.clamp(-limit, limit)


def dynamic(x0: Tensor, limit: float, quantile: float) -> Tensor:
    """Cut off at +-s and rescale to +-limit, with s a quantile of each image's |x0|, at least limit (2205.11487)."""
    s = torch.quantile(x0.abs().reshape(len(x0), -1), quantile, dim=1).clamp(min=limit)
    s = match_dims(s, x0)
    return torch.maximum(torch.minimum(x0, s), -s) * (limit / s)


THRESHOLDS: dict[str, Rule | None] = {"none": None, "clip": clip, "dynamic": dynamic}
"""Name -> rule."""


def thresholded(sde: SDE, score_fn: ScoreFn, threshold: str, limit: float, quantile: float) -> ScoreFn:
    """The score whose denoised estimate obeys a rule; for "none" the score itself."""
    rule = lookup(THRESHOLDS, threshold, "threshold")
    if rule is None:
        return score_fn

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (match_dims(c, x) for c in sde.marginal(t))
        x0 = rule((x + sigma.square() * score_fn(x, t)) / alpha, limit, quantile)
        return (alpha * x0 - x) / sigma.square()

    return score
