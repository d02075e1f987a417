"""Predictor-corrector sampling (arXiv 2011.13456, algorithm 1): any predictor, any corrector."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from samplers.ancestral import Ancestral
from samplers.base import Sampler, Score
from samplers.euler_maruyama import EulerMaruyama
from samplers.langevin import CORRECTORS, correct
from samplers.reverse_diffusion import ReverseDiffusion
from sde_lib import lookup

PREDICTORS: Mapping[str, type[Sampler]] = {
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "euler_maruyama": EulerMaruyama,
}


class PredictorCorrector(Sampler):
    """From t to s by the predictor, then ``corrector_steps`` updates of the corrector at s.

    With no corrector step it is its predictor. NFE = steps (1 + corrector_steps), and one for the denoising.

    Args:
        predictor: "reverse_diffusion", "ancestral" or "euler_maruyama".
        corrector: "langevin" or "annealed_langevin".
        snr: signal-to-noise ratio of the corrector, above 0.
        corrector_steps: updates after each predictor step, 0 or more.
        **options: of ``Sampler``.
    """

    def __init__(
        self,
        predictor: str = "reverse_diffusion",
        corrector: str = "langevin",
        snr: float = 0.16,
        corrector_steps: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if corrector_steps < 0 or not snr > 0:
            raise ValueError(f"corrector_steps is {corrector_steps} and snr {snr}; they must be at least 0 and above 0")
        self.predictor = lookup(PREDICTORS, predictor, "predictor")(**options)
        self.rule = lookup(CORRECTORS, corrector, "corrector")
        self.snr = snr
        self.corrector_steps = corrector_steps

    def init(self, score: Score, x: Tensor, times: Tensor) -> Any:
        """The predictor's state."""
        return self.predictor.init(score, x, times)

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Predict, then correct (unless s is without noise)."""
        x, state = self.predictor.step(score, x, t, s, state)
        ratio2 = score.sde.transition(s, t)[0].square()
        if score.sde.sigma(s) == 0:  # p_s is the data, and has no score to follow
            return x, state
        for _ in range(self.corrector_steps):
            x = correct(score, x, s, ratio2, self.rule, self.snr)
        return x, state
