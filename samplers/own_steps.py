"""Methods that choose their own steps: they solve from one end of the grid to the other, and use no time between."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from samplers.base import Report, Sampler, Score
from samplers.time_grid import with_noise_at_the_end
from sde_lib import SDE


class OwnSteps(Sampler):
    """A method that finds its steps as it goes; subclasses say how to ``solve``.

    Where its steps are ``fixed`` after all, they are those of the grid.
    """

    divides_by_alpha = False
    fixed = False

    @abstractmethod
    def solve(self, score: Score, x: Tensor, times: Tensor, report: Report) -> Tensor:
        """From x at times[0] to x at times[-1], in float32 or float64."""

    def time_grid(self, sde: SDE) -> Tensor:
        """The two ends, or the grid of fixed steps."""
        times = super().time_grid(sde)
        return with_noise_at_the_end(sde, times if self.fixed else times[[0, -1]])

    def step_count(self, sde: SDE) -> int | None:
        """Found out as it goes, or the grid's."""
        return super().step_count(sde) if self.fixed else None

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Solve from t to s."""
        return self.run(score, x, torch.stack([t, s]), lambda t, x: None), state

    def run(self, score: Score, x: Tensor, times: Tensor, report: Report) -> Tensor:
        """Solve from the first time to the last."""
        half = x.dtype in (torch.float16, torch.bfloat16)  # in which neither times nor errors resolve
        return self.solve(score, x.float() if half else x, times, report).to(x.dtype)
