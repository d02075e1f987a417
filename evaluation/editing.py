"""Images made from images: other versions of one, and one with other labels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data import make_generator
from evaluation.generate import Generated, generate
from samplers import Sampler
from sde_lib import SDE, ODESolution, transport


def variations(
    sampler: Sampler, sde: SDE, score_fn: Callable[..., Tensor], x0: Tensor, n: int, *, seed: int = 0, **options: Any
) -> Generated:
    """Noise an image up to the sampler's first time t_0, and let the sampler denoise it (SDEdit, arXiv 2108.01073).

        x_{t_0} = alpha x_0 + sigma z,    z ~ N(0, I) by (seed, number of the variation).

    The later t_0, the more is made anew; what is larger than the noise stays.

    Args:
        sampler: with the option ``t_start``.
        sde: the process.
        score_fn: its score.
        x0: one image (*), model units.
        n: number of variations.
        seed: of all noise.
        **options: of ``generate``.
    """
    alpha, sigma = sde.marginal(sampler.time_grid(sde)[0])
    noise = [torch.randn(x0.shape, generator=make_generator(seed, "variation", k)) for k in range(n)]
    x_init = alpha.to(x0) * x0 + sigma.to(x0) * torch.stack(noise)
    return generate(sampler, sde, score_fn, x0.shape, n, x_init=x_init, seed=seed, **options)


def relabel(
    sde: SDE,
    score_fn: Callable[..., Tensor],
    x0: Tensor,
    *,
    before: Tensor,
    after: Tensor,
    decode_score_fn: Callable[..., Tensor] | None = None,
    **solver: Any,
) -> ODESolution:
    """Encode images under the labels that they have, and decode their codes under others, by the probability-flow ODE.

    What the labels do not tell lies in the code, and stays.

    Args:
        sde: the process.
        score_fn: (x, t, y=...) -> score.
        x0: images (B, *), model units.
        before: their labels (B,) or (B, A).
        after: those that they get, likewise.
        decode_score_fn: score under those, such as a guided one; None for ``score_fn``.
        **solver: method, rtol, atol, steps, max_nfe of ``transport``.

    Returns:
        the images with their new labels, and the evaluations for one, there and back.
    """
    codes = transport(sde, partial(score_fn, y=before), x0, sde.t_min, sde.T, **solver)
    decoded = transport(sde, partial(decode_score_fn or score_fn, y=after), codes.x, sde.T, sde.t_min, **solver)
    return ODESolution(decoded.x, codes.nfe + decoded.nfe)
