"""The Fréchet distance of two Gaussians: how far apart two sets of features lie, by their means and covariances.

    d^2 = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

It is the squared 2-Wasserstein distance of N(m_1, S_1) and N(m_2, S_2) (D. Dowson and B. Landau, 1982). With
S = R R^T for both, tr (S_1 S_2)^(1/2) is the sum of the singular values of R_1^T R_2, which needs no root of a
rounding error, and so is exact where a covariance has no full rank.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D), float64."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: Tensor) -> Moments:
    """Of features (N, D), with the unbiased covariance.

    Raises:
        ValueError: there are fewer than two rows, or something that is not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must have shape (N, D) with N >= 2, got {tuple(features.shape)}")
    rows = features.double().numpy()
    if not np.isfinite(rows).all():
        raise ValueError("features are not finite: the extractor gives nan or inf for some samples")
    return Moments(rows.mean(0), np.cov(rows, rowvar=False).reshape(rows.shape[1], rows.shape[1]))


def frechet_distance(one: Moments, other: Moments) -> float:
    """d^2 above; 0 for equal moments."""
    difference = one.mean - other.mean
    overlap = np.linalg.svd(_root(one.covariance).T @ _root(other.covariance), compute_uv=False).sum()
    squared = difference @ difference + np.trace(one.covariance) + np.trace(other.covariance) - 2 * overlap
    return max(float(squared), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with R R^T = S; directions whose variance is a rounding error have none."""
    values, vectors = np.linalg.eigh(covariance)
    rounding = len(values) * np.finfo(np.float64).eps * max(values.max(), 0.0)
    return vectors * np.sqrt(np.where(values > rounding, values, 0.0))
