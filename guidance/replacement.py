"""Replacement: what is measured follows its own process (arXiv 2011.13456, section 5 and appendix I)."""

from torch import Tensor

from guidance.posterior import Posterior
from sde_lib import ScoreFn


class Replacement(Posterior):
    """In the directions that A measures, the score of the noised measurement; in the others, that of the images.

        s - A^+ A s + A^T (sigma^2 A A^T + alpha^2 noise_std^2 I)^-1 (alpha y - A x).

    The paper puts the noised measurement in place of what a step has made of it; under this score the sampler itself
    carries it along. No gradient through the network is needed.

    What is not measured sees y only through its noised copy at the same time, so the result is a sample of
    p(x0 | y) only where the two are independent; otherwise they fit too loosely (``docs/editing.md`` has by how much).
    """

    def guide(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> Tensor:
        """See ``Posterior.guide``."""
        alpha, sigma = self.sde.marginal(t)
        score = score_fn(x, t)
        known = self.operator.solve(self.residual(x, alpha), sigma**2, (alpha * self.noise_std) ** 2)
        return score - self.operator.pinv(self.operator.apply(score)) + self.operator.adjoint(known)
