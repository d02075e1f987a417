"""The adaptive SDE solver of "Gotta Go Fast" (arXiv 2105.14080, algorithm 1)."""

from typing import Any

import torch
from torch import Tensor

from samplers.base import Report, SamplingError, Score
from samplers.own_steps import OwnSteps
from sde_lib import match_dims


class AdaptiveSDE(OwnSteps):
    """Stochastic improved Euler with steps chosen for each image by its distance from Euler-Maruyama.

    x'  = x - h d(x, t) + sqrt(h) g(t) z            d the drift of the reverse SDE
    x'' = x - h d(x', t - h) + sqrt(h) g(t - h) z
    E   = RMS over an image of (x'' - x') / 2 / max(atol, rtol |x'|, rtol |x'_previous|)

    A step with E <= 1 moves to (x' + x'') / 2; the next h is 0.9 h E^-0.9. Two evaluations each, of the whole batch
    until its last image has arrived. A repeated step follows the same Brownian path: rejections do not bias the law.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance; the paper takes one level of 8 bits, 2 / 256 on [-1, 1].
        first_step: h at the start.
        max_nfe: give up after this many evaluations.
        **options: of ``Sampler``; ``steps`` and the inner times of the grid are not used.
    """

    def __init__(
        self,
        rtol: float = 0.02,
        atol: float = 0.0078,
        first_step: float = 0.01,
        max_nfe: int = 10_000,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not (rtol >= 0 and atol > 0 and first_step > 0 and max_nfe > 0):
            raise ValueError(
                f"rtol is {rtol}, atol {atol}, first_step {first_step} and max_nfe {max_nfe}; they must be above 0"
            )
        self.rtol = rtol
        self.atol = atol
        self.first_step = first_step
        self.max_nfe = max_nfe

    def solve(self, score: Score, x: Tensor, times: Tensor, report: Report) -> Tensor:
        """Each image at its own pace."""
        end = times[-1]
        t = times[:1].repeat(len(x))
        h = torch.clamp(t - end, max=self.first_step)
        path, previous = score.source.path(x), x
        w = path.at(score.clock(t))
        while (t > end).any():
            if score.nfe + 2 > self.max_nfe:
                raise SamplingError(
                    f"still at t = {float(t.max()):g} after max_nfe = {self.max_nfe} evaluations: raise max_nfe, or "
                    "raise rtol and atol"
                )
            s = torch.where(h < t - end, t - h, end)
            w_s = path.at(score.clock(s))
            past = (score.clock(t) - score.clock(s)).clamp(min=1e-30).sqrt()
            euler, heun = self._pair(score, x, t, s, (w - w_s).to(x.dtype) / match_dims(past, x))
            scale = torch.maximum(euler.abs(), previous.abs()).mul(self.rtol).clamp(min=self.atol)
            error = ((heun - euler) / scale).reshape(len(x), -1).square().mean(1).sqrt().cpu().double()
            if not error.isfinite().all():
                score.check(heun)
            accepted = error <= 1
            mask = match_dims(accepted, x).bool()
            x, previous, w = torch.where(mask, heun, x), torch.where(mask, euler, previous), torch.where(mask, w_s, w)
            t = torch.where(accepted, s, t)
            h = torch.minimum(t - end, 0.9 * h * error.clamp(min=1e-10) ** -0.9)
            if accepted.any():
                report(t.max(), x)
        return x

    def _pair(self, score: Score, x: Tensor, t: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Euler-Maruyama's and the improved step from t to s, (B,) each."""
        h = match_dims(t - s, x)

        def change(x: Tensor, t: Tensor) -> Tensor:
            f, g = (match_dims(c, x) for c in (score.sde.drift_coeff(t), score.sde.diffusion(t)))
            return h.sqrt() * g * z - h * (f * x - g**2 * score(x, t))

        first = change(x, t)
        return x + first, x + (first + change(x + first, s)) / 2
