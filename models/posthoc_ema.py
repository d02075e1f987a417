"""Averages of weights by power functions, and those of any width made of a few after the training (arXiv 2312.02696).

An average weighs the weights of the time tau, 0 < tau <= t, by

    p(tau; t, gamma) = (gamma + 1) tau^gamma / t^(gamma + 1),

whose standard deviation in units of t is  sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)). Averages are
linear in their profiles: where p is near sum_i c_i p_i, the average by p is near sum_i c_i average_i, for the stored
averages i of other times and widths. The c minimise the integral of (sum_i c_i p_i - p)^2, as in section 3.2 and
appendix C, and here under sum_i c_i = 1, so that weights which do not move are given back as they are: for sigma_rel =
0.25, made of 22 snapshots of 0.05 and 0.1, the plain minimum has sum_i c_i = 0.989, so it would shrink all weights by a
hundredth, and its profile is hardly closer (a misfit of 0.053, against 0.054).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

WIDEST = 12**-0.5
"""sigma_rel of the plain mean, gamma = 0."""


class Profile(NamedTuple):
    """p(tau; time, gamma)."""

    time: float
    gamma: float


class Fit(NamedTuple):
    """Coefficients (n,), and how far their profile is from the wanted one: the distance in L2, in units of its norm."""

    coefficients: np.ndarray
    misfit: float


def std_of(gamma: float) -> float:
    """sigma_rel of an exponent gamma > -1."""
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def gamma_of(std: float) -> float:
    """The exponent of a width: the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2.

    Raises:
        ValueError: the width is not in (0, 12^-1/2].
    """
    if not 0 < std <= WIDEST:
        raise ValueError(
            f"the width of an average is {std:g}; it must lie in (0, {math.floor(1e5 * WIDEST) / 1e5:g}], where the "
            "end is the plain mean of all weights so far, and 0.05 to 0.15 are usual"
        )
    square = std**-2
    return float(np.roots([1, 7, 16 - square, 12 - square]).real.max())


def inner_products(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """Integrals of p_i p_j over the time, (len(a), len(b)), in float64.

    With t <= t' they are  (gamma + 1) (gamma' + 1) / ((gamma + gamma' + 1) t') (t / t')^gamma'.
    """
    (t, gamma), (other_t, other_gamma) = np.array(a, dtype=np.float64).T, np.array(b, dtype=np.float64).T
    t, gamma = t[:, None], gamma[:, None]
    early, late = np.minimum(t, other_t), np.maximum(t, other_t)
    exponent = np.where(t < other_t, other_gamma, gamma)
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) / late * (early / late) ** exponent


def fit(basis: Sequence[Profile], wanted: Profile) -> Fit:
    """The coefficients of stored averages in the wanted one.

    They solve  min_c  c A c - 2 c b  under  sum c = 1,  with A_ij = (p_i, p_j) and b_i = (p_i, p), by a multiplier; the
    profiles are first made of norm 1, as those of early times are much larger.

    Args:
        basis: the stored ones, all different.
        wanted: the other.
    """
    gram, right = inner_products(basis, basis), inner_products(basis, [wanted])[:, 0]
    scale = np.diag(gram) ** -0.5
    system = np.block([[gram * np.outer(scale, scale), scale[:, None]], [scale[None], np.zeros((1, 1))]])
    c = scale * np.linalg.solve(system, np.append(scale * right, 1.0))[:-1]
    square = inner_products([wanted], [wanted])[0, 0]
    return Fit(c, float(max(0.0, c @ gram @ c - 2 * c @ right + square) / square) ** 0.5)


def combine(parts: Iterable[dict[str, Tensor]], coefficients: Iterable[Sequence[float]]) -> list[dict[str, Tensor]]:
    """Sums of weights, for several wanted averages at once, as the parts may be too many to be held together.

    Args:
        parts: name -> weights, one after the other.
        coefficients: of each part, one for each wanted average.

    Returns:
        Name -> sum of coefficient times weights, for each wanted average.
    """
    sums: list[dict[str, Tensor]] = []
    for part, row in zip(parts, coefficients, strict=True):
        sums = sums or [{name: value.new_zeros(value.shape) for name, value in part.items()} for _ in row]
        for total, c in zip(sums, row, strict=True):
            for name, value in part.items():
                total[name].add_(value, alpha=float(c))
    return sums
