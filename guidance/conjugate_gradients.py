"""Conjugate gradients (Hestenes and Stiefel, 1952): M v = y for symmetric, positive semidefinite M, image by image."""

from collections.abc import Callable

import torch
from torch import Tensor

from sde_lib import match_dims


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], y: Tensor, *, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """Solve M v = y for each image of a batch.

    Args:
        product: v -> M v, (B, *).
        y: (B, *).
        iterations: at most so many products.
        tolerance: an image whose residual is this share of y is left as it is, and so is one for which M gives no more.
    """
    v, residual = torch.zeros_like(y), y
    direction, norm = residual, _dot(residual, residual)
    enough = tolerance**2 * norm
    for _ in range(iterations):
        image = product(direction)
        curvature = _dot(direction, image)
        goes_on = (norm > enough) & (curvature > 0)
        length = torch.where(goes_on, norm / torch.where(goes_on, curvature, 1.0), 0.0)
        v = v + match_dims(length, v) * direction
        residual = residual - match_dims(length, v) * image
        before, norm = norm, torch.where(goes_on, _dot(residual, residual), norm)
        direction = residual + match_dims(norm / torch.where(before > 0, before, 1.0), v) * direction
    return v


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
