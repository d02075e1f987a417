"""The probability-flow ODE, solved by a general method (arXiv 2011.13456, section 4.3)."""

import math
from typing import Any

import torch
from torch import Tensor

from samplers.base import Report, Score
from samplers.own_steps import OwnSteps
from sde_lib import METHODS, SDE, integrate, lookup
from sde_lib.ode import FIXED


class ProbabilityFlow(OwnSteps):
    """dx = [f x - g^2 s(x, t) / 2] dt from T to t_end: one deterministic map from noise to data.

    Adaptive methods choose their own steps by the tolerances and use no more of the grid than its ends; fixed methods
    step from each time of the grid to the next.

    Args:
        method: a key of ``sde_lib.METHODS``, such as "dopri5", "rk4" or "scipy_rk45".
        rtol: relative tolerance of each sample.
        atol: absolute tolerance of each sample.
        max_nfe: bound on the evaluations.
        **options: of ``Sampler``.
    """

    natural_steps = 100

    def __init__(
        self, method: str = "dopri5", rtol: float = 1e-5, atol: float = 1e-5, max_nfe: int = 10_000, **options: Any
    ) -> None:
        super().__init__(**options)
        self.method = method
        self.fixed = lookup(METHODS, method, "ODE method") == "fixed"
        self.order = FIXED.get(method)
        self.rtol = rtol
        self.atol = atol
        self.max_nfe = max_nfe
        if not (0 < rtol < math.inf and 0 < atol < math.inf and max_nfe >= 1):
            raise ValueError(f"rtol is {rtol}, atol {atol} and max_nfe {max_nfe}; give numbers above 0")

    def time_grid(self, sde: SDE) -> Tensor:
        """The grid of a fixed method, whose steps Adams's need equal; the two ends for an adaptive one."""
        times = super().time_grid(sde)
        steps = times.diff()
        if self.method.endswith("_adams") and not torch.allclose(steps, steps.mean(), rtol=1e-6):
            raise ValueError(f"method {self.method!r} needs equal steps: give grid 'uniform', or use deis or ipndm")
        return times

    def solve(self, score: Score, x: Tensor, times: Tensor, report: Report) -> Tensor:
        """By the chosen method of ``sde_lib.integrate``."""
        flow = score.sde.reverse(lambda x, t: score(x, t[0]), probability_flow=True)

        def drift(time: Tensor, x: Tensor) -> Tensor:
            return flow.sde(x, time)[0]

        solution = integrate(
            drift,
            x,
            float(times[0]),
            float(times[-1]),
            method=self.method,
            rtol=self.rtol,
            atol=self.atol,
            grid=times.tolist() if self.fixed else None,
            breakpoints=score.sde.breakpoints,
            max_nfe=self.max_nfe,
            on_step=report,
        )
        return solution.x
