"""Moment matching posterior sampling, MMPS (Rozet et al., arXiv 2405.13712): by the covariance of the network."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from guidance.conjugate_gradients import conjugate_gradients
from guidance.posterior import LikelihoodGuidance
from sde_lib import match_dims


class MomentMatching(LikelihoodGuidance):
    """W = (A V A^T + noise_std^2 I)^-1 with V = Cov[x0 | x_t] = (sigma^2 / alpha) J (Tweedie's second formula).

    Exact for every normal law of the data. W is applied by conjugate gradients; each iteration is one more gradient
    through the network.

    Args:
        *arguments: of ``Posterior``.
        iterations: of conjugate gradients. The Jacobian of a trained network is not quite symmetric, nor positive: more
            iterations than 1 can make it worse (``docs/editing.md``).
        **options: of ``Posterior``.
    """

    def __init__(self, *arguments: Any, iterations: int = 1, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if iterations < 1:
            raise ValueError(f"{iterations} iterations of conjugate gradients; give at least 1")
        self.iterations = iterations

    def weigh(self, residual: Tensor, t: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:
        """See ``LikelihoodGuidance.weigh``."""
        alpha, sigma = self.sde.marginal(t)
        ratio = match_dims(sigma**2 / alpha, residual)

        def product(v: Tensor) -> Tensor:
            return ratio * self.operator.apply(pull(self.operator.adjoint(v))) + self.noise_std**2 * v

        return conjugate_gradients(product, residual, iterations=self.iterations)
