"""UniPC: DPM-Solver++ with a corrector that costs nothing (arXiv 2302.04867)."""

from typing import Any

from samplers.dpmpp import DPMSolverPP


class UniPC(DPMSolverPP):
    """A step is repeated with the prediction at its end, which the next step needs anyway, as one more point.

    The predictor is DPM-Solver++'s of the same order p, the corrector's polynomial has p + 1 points, so the order is
    p + 1 (p = 1: 2). The weights are exact integrals; for them the published B(h) cancels. The last step, whose end
    needs no prediction, is not corrected.
    """

    def __init__(self, order: int = 3, **options: Any) -> None:
        super().__init__(order, **options)
        self.order = min(self._points + 1, 3)

    def corrects(self, have: int, points: int, last: bool) -> bool:
        """All but the last."""
        return not last
