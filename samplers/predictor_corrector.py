"""Predictor-corrector sampling (arXiv 2011.13456, algorithm 1): any predictor, any corrector."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from samplers.ancestral import Ancestral
from samplers.base import Sampler, Score
from samplers.ddim import DDIM
from samplers.dpm_solver import DPMSolver
from samplers.euler_maruyama import EulerMaruyama
from samplers.exponential_sde import ExponentialSDE
from samplers.heun import Heun
from samplers.langevin import CORRECTORS, correct
from samplers.reverse_diffusion import ReverseDiffusion
from sde_lib import lookup
from sde_lib.arguments import is_whole


class Stay(Sampler):
    """No predictor: x_s = x_t, for a corrector alone."""

    divides_by_alpha = False

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Nothing."""
        return x, state


PREDICTORS: Mapping[str, type[Sampler]] = {
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "euler_maruyama": EulerMaruyama,
    "exponential_sde": ExponentialSDE,
    "ddim": DDIM,
    "heun": Heun,
    "dpm_solver": DPMSolver,
    "none": Stay,
}
"""Name -> one-step method, taken with its defaults."""


class PredictorCorrector(Sampler):
    """From t to s by the predictor, then ``corrector_steps`` updates of the corrector at s.

    With ``corrector_first`` the updates come before the predictor, at t (as in Song's code; his paper has them after).
    Without corrector steps it is its predictor; with the predictor "none" the corrector alone. NFE = steps (those of
    the predictor + corrector_steps), and one for the denoising.

    Args:
        predictor: a key of ``PREDICTORS``.
        corrector: "annealed_langevin" or "langevin".
        snr: signal-to-noise ratio of the corrector, above 0.
        corrector_steps: updates in each step, 0 or more.
        corrector_first: correct before predicting.
        **options: of ``Sampler``.
    """

    def __init__(
        self,
        predictor: str = "reverse_diffusion",
        corrector: str = "annealed_langevin",
        snr: float = 0.16,
        corrector_steps: int = 1,
        corrector_first: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not is_whole(corrector_steps):
            raise TypeError(f"corrector_steps is {corrector_steps!r}; give a whole number")
        if corrector_steps < 0 or not 0 < snr < math.inf:
            raise ValueError(f"corrector_steps is {corrector_steps} and snr {snr}; they must be at least 0 and above 0")
        self.predictor = lookup(PREDICTORS, predictor, "predictor")(**options)
        self.divides_by_alpha = self.predictor.divides_by_alpha
        self.rule = lookup(CORRECTORS, corrector, "corrector")
        self.snr = snr
        self.corrector_steps = corrector_steps
        self.corrector_first = corrector_first

    def init(self, score: Score, x: Tensor, times: Tensor) -> Any:
        """The predictor's state."""
        return self.predictor.init(score, x, times)

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Predict and correct, in this order or the other."""
        if self.corrector_first:
            return self.predictor.step(score, self._correct(score, x, t, s, t), t, s, state)
        x, state = self.predictor.step(score, x, t, s, state)
        return self._correct(score, x, t, s, s), state

    def _correct(self, score: Score, x: Tensor, t: Tensor, s: Tensor, at: Tensor) -> Tensor:
        """All updates of a step, at one time (where p is without noise it is the data, and has no score to follow)."""
        if score.sde.sigma(at) == 0:
            return x
        ratio2 = score.sde.transition(s, t)[0] ** 2
        for _ in range(self.corrector_steps):
            x = correct(score, x, at, ratio2, self.rule, self.snr)
        return x
