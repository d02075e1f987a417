"""Images as latent codes: there and back by the probability-flow ODE, and the way from one image to another.

The codes of the prior N(0, s^2 I) lie near a sphere; the spherical interpolation (slerp, Shoemake 1985) stays on it:

    z_w = sin((1 - w) a) / sin(a) z_0 + sin(w a) / sin(a) z_1,    a the angle between z_0 and z_1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_lib import SDE, transport

Score = Callable[[Tensor, Tensor], Tensor]


class Interpolation(NamedTuple):
    """Ways between pairs of images.

    Attributes:
        path: (pairs, moments, *); its ends are the images as they come back from their codes.
        codes: (2, pairs, *), of the first and of the second images.
        round_trip: root-mean-square difference of the images and what came back, over all of them.
        nfe: evaluations of the network for one image, there and back.
    """

    path: Tensor
    codes: Tensor
    round_trip: float
    nfe: int


def slerp(z0: Tensor, z1: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation of codes (B, *) at weights (W,), shape (B, W, *); straight where the angle vanishes."""
    a, b = z0.reshape(len(z0), 1, -1).double(), z1.reshape(len(z1), 1, -1).double()
    cosine = (a * b).sum(2, keepdim=True) / (a.norm(dim=2, keepdim=True) * b.norm(dim=2, keepdim=True))
    angle = torch.acos(cosine.clamp(-1, 1))
    w = weights.to(a).reshape(1, -1, 1)
    sine = torch.sin(angle)
    small = ~(sine >= 1e-6)  # also where a code is 0, and has no angle
    safe = torch.where(small, 1.0, sine)
    first = torch.where(small, 1 - w, torch.sin((1 - w) * angle) / safe)
    second = torch.where(small, w, torch.sin(w * angle) / safe)
    return (first * a + second * b).reshape(len(z0), len(weights), *z0.shape[1:]).to(z0)


def interpolate(
    sde: SDE,
    score_fn: Score,
    x0: Tensor,
    x1: Tensor,
    moments: int = 9,
    *,
    decode_score_fn: Score | None = None,
    **solver: Any,
) -> Interpolation:
    """Encode pairs of images, walk between their codes, decode.

    Args:
        sde: the process.
        score_fn: (x, t) -> score of the images, the first and then the second ones, (2 B, *).
        x0: first images (B, *).
        x1: second images (B, *).
        moments: points of the way, both ends included.
        decode_score_fn: score of the points of the ways, way by way, (B moments, *); None for ``score_fn``.
        **solver: method, rtol, atol, steps, max_nfe of ``transport``.

    Raises:
        ValueError: fewer than two moments, or images of different shapes.
    """
    if moments < 2:
        raise ValueError(f"moments is {moments!r}; a way has at least its 2 ends")
    if x0.shape != x1.shape:
        raise ValueError(f"the images have shapes {tuple(x0.shape)} and {tuple(x1.shape)}; pairs need equal ones")
    pairs = len(x0)
    there = transport(sde, score_fn, torch.cat([x0, x1]), sde.t_min, sde.T, **solver)
    codes = there.x.reshape(2, pairs, *x0.shape[1:])
    ways = slerp(codes[0], codes[1], torch.linspace(0, 1, moments, dtype=torch.float64))
    back = transport(sde, decode_score_fn or score_fn, ways.flatten(0, 1), sde.T, sde.t_min, **solver)
    path = back.x.reshape(pairs, moments, *x0.shape[1:])
    error = torch.cat([path[:, 0] - x0, path[:, -1] - x1]).double().square().mean().sqrt()
    return Interpolation(path, codes, float(error), there.nfe + back.nfe)
