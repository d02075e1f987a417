"""What all methods for linear inverse problems share: y = A x0 + noise_std n is known, x0 is wanted.

A method turns the score of p_t(x) into that of p_t(x | y), exactly or nearly so; any sampler then draws from it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guidance.operators import LinearOperator
from sde_lib import SDE, ScoreFn, match_dims
from sde_lib.sde import batch_time


class Posterior(ABC):
    """The score of images that have a measurement, as a function (x: (B, *), t: (B,)) -> (B, *).

    Args:
        sde: the process.
        score_fn: the score of all images, (x, t) and its conditions.
        operator: A.
        y: the measurement, (B, *), or (1, *) for one that all samples share.
        noise_std: standard deviation of the noise in it, in model units.

    Raises:
        ValueError: the noise is negative or y is not finite; when called, y is of another shape than A x.
    """

    def __init__(
        self, sde: SDE, score_fn: Callable[..., Tensor], operator: LinearOperator, y: Tensor, noise_std: float = 0.0
    ) -> None:
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"the noise of the measurement is {noise_std}; give a standard deviation from 0 on")
        if not y.isfinite().all():
            raise ValueError("the measurement is not finite")
        self.sde, self.score_fn, self.operator = sde, score_fn, operator
        self.y, self.noise_std = y, noise_std

    @property
    def evaluations(self) -> int:
        """Of the network for each sample, in the last call; see ``samplers.Score``."""
        return getattr(self.score_fn, "evaluations", 1)

    def __call__(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The guided score, shape of x; ``condition`` is what the score takes besides, such as labels ``y``."""
        return self.guide(partial(self.score_fn, **condition), x, batch_time(t, x))

    @abstractmethod
    def guide(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> Tensor:
        """The guided score at times (B,), from a score that has its conditions."""

    def residual(self, x: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        """Factor y - A x, with a factor () or (B,)."""
        measured = self.operator.apply(x)
        y = self.y.to(measured)
        if y.shape[1:] != measured.shape[1:] or len(y) not in (1, len(x)):
            raise ValueError(
                f"the measurement has shape {tuple(y.shape)}; images {tuple(x.shape)} are measured as "
                f"{tuple(measured.shape)}, or (1, ...) for one that all share"
            )
        factor = torch.as_tensor(factor).to(measured)
        return (match_dims(factor, measured) if factor.ndim else factor) * y - measured


class LikelihoodGuidance(Posterior):
    """Methods that add the score of an approximate p(y | x_t) = N(y; A x0_hat, W^-1).

        s + J^T A^T W (y - A x0_hat),    x0_hat = E[x0 | x_t] = (x + sigma^2 s) / alpha,    J = d x0_hat / d x.

    They differ in W; the product with J^T is one gradient through the network.
    """

    def guide(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> Tensor:
        """See ``Posterior.guide``."""
        alpha, sigma = (match_dims(c, x) for c in self.sde.marginal(t))
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            score = score_fn(x, t)
            x0 = (x + sigma.square() * score) / alpha

        def pull(v: Tensor) -> Tensor:
            """J^T v."""
            return torch.autograd.grad(x0, x, v, retain_graph=True)[0]

        v = self.operator.adjoint(self.weigh(self.residual(x0.detach()), t, pull))
        return (score + pull(v)).detach()

    @abstractmethod
    def weigh(self, residual: Tensor, t: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:
        """W (y - A x0_hat), for the residual; ``pull`` is the product with J^T."""
