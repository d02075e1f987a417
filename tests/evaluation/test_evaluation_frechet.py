"""The Fréchet distance of Gaussians against closed forms, and against torch-fidelity's."""

import math

import numpy as np
import pytest
import torch

from evaluation import frechet_distance, moments
from evaluation.frechet import Moments


def rotation(dims, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dims, dims)))[0]


def gaussian(mean, variances, axes):
    return Moments(np.asarray(mean, float), axes @ np.diag(variances) @ axes.T)


@pytest.mark.parametrize("dims", [1, 2, 7, 40])
def test_gaussians_with_common_axes(dims):
    """Their covariances commute: |m_1 - m_2|^2 + sum (s_1 - s_2)^2 over the standard deviations of the axes."""
    rng, axes = np.random.default_rng(dims), rotation(dims, dims)
    means, stds = rng.normal(size=(2, dims)), rng.uniform(0.1, 3, size=(2, dims))
    one, other = (gaussian(means[i], stds[i] ** 2, axes) for i in (0, 1))
    expected = np.square(means[0] - means[1]).sum() + np.square(stds[0] - stds[1]).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ranks", [(1, 6), (3, 3), (6, 2), (0, 4), (0, 0)])
def test_covariances_without_full_rank(ranks):
    """Rounding in the directions that have no variance must not enter by its square root, 1e-8 of each."""
    dims, axes = 6, rotation(6, 1)
    stds = [np.where(np.arange(dims) < rank, 1.0 + np.arange(dims), 0.0) for rank in ranks]
    one, other = (gaussian(np.full(dims, i), stds[i] ** 2, axes) for i in (0, 1))
    expected = dims + np.square(stds[0] - stds[1]).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-13)


def test_lines_at_an_angle():
    """Two Gaussians on lines, which do not commute: tr (S_1 S_2)^(1/2) = s_1 s_2 |cos|."""
    for angle in (0.0, 0.3, 1.0, math.pi / 2):
        directions = np.array([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
        one, other = (Moments(np.zeros(2), s**2 * np.outer(d, d)) for s, d in zip((2.0, 3.0), directions, strict=True))
        assert frechet_distance(one, other) == pytest.approx(4 + 9 - 12 * math.cos(angle), rel=1e-12)


def test_two_by_two_covariances_of_any_kind():
    """tr (S_1 S_2)^(1/2) of 2x2 matrices is the root of tr S_1 S_2 + 2 (det S_1 S_2)^(1/2)."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        roots = rng.normal(size=(2, 2, 2))
        one, other = (Moments(rng.normal(size=2), root @ root.T) for root in roots)
        product = one.covariance @ other.covariance
        overlap = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
        difference = one.mean - other.mean
        expected = difference @ difference + np.trace(one.covariance) + np.trace(other.covariance) - 2 * overlap
        assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-10)


def test_of_a_set_with_itself_it_is_0():
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    for some in (features, features[:3], features[:, :1]):
        assert frechet_distance(moments(some), moments(some)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [8, 300])
def test_it_is_torch_fidelitys(n):
    from torch_fidelity import metric_fid

    generator = torch.Generator().manual_seed(1)
    one = torch.randn(n, 20, generator=generator).double() @ torch.randn(20, 20, generator=generator).double()
    other = torch.randn(2 * n, 20, generator=generator).double() + 1
    pair = [metric_fid.fid_features_to_statistics(features) for features in (one, other)]
    (theirs,) = metric_fid.fid_statistics_to_metric(*pair, verbose=False).values()
    # theirs takes roots of rounding errors where a covariance has no full rank
    assert frechet_distance(moments(one), moments(other)) == pytest.approx(theirs, rel=1e-8 if n > 20 else 1e-6)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(1, 3), r"shape \(N, D\) with N >= 2, got \(1, 3\)"),
        (torch.ones(4), r"got \(4,\)"),
        (torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]), "not finite"),
    ],
)
def test_features_that_have_no_moments(features, message):
    with pytest.raises(ValueError, match=message):
        moments(features)
