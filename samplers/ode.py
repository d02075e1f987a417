"""The probability-flow ODE, solved by a general method (arXiv 2011.13456, section 4.3)."""

from typing import Any

from torch import Tensor

from samplers.base import Sampler, Score
from samplers.time_grid import time_grid
from sde_lib import METHODS, SDE, integrate, lookup


class ProbabilityFlow(Sampler):
    """dx = [f x - g^2 s(x, t) / 2] dt from T to t_end: one deterministic map from noise to data.

    Adaptive methods choose their own steps by the tolerances and ignore ``steps`` and ``grid``; fixed methods take one
    step between neighbouring times of the grid.

    Args:
        method: a key of ``sde_lib.METHODS``, such as "dopri5", "rk4" or "scipy_rk45".
        rtol: relative tolerance of each sample.
        atol: absolute tolerance of each sample.
        max_nfe: bound on the evaluations.
        **options: of ``Sampler``.
    """

    def __init__(
        self, method: str = "dopri5", rtol: float = 1e-5, atol: float = 1e-5, max_nfe: int = 10_000, **options: Any
    ) -> None:
        super().__init__(**options)
        self.method = method
        self.fixed = lookup(METHODS, method, "ODE method") == "fixed"
        self.rtol = rtol
        self.atol = atol
        self.max_nfe = max_nfe

    def time_grid(self, sde: SDE) -> Tensor:
        """The grid of a fixed method; the two ends for an adaptive one."""
        return super().time_grid(sde) if self.fixed else time_grid(sde, "uniform", 1, self.t_end)

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Solve from t to s."""
        flow = score.sde.reverse(lambda x, t: score(x, t[0]), probability_flow=True)

        def drift(time: Tensor, x: Tensor) -> Tensor:
            return flow.sde(x, time)[0]

        solution = integrate(
            drift,
            x,
            float(t),
            float(s),
            method=self.method,
            rtol=self.rtol,
            atol=self.atol,
            steps=1,
            breakpoints=score.sde.breakpoints,
            max_nfe=self.max_nfe,
        )
        return solution.x, state
