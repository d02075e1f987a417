"""Planar distributions against their laws."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from data.randomness import make_generator
from data.toy import DISTRIBUTIONS, Toy, checkerboard, gaussians, moons, rings, swissroll

SIZE = 40_000


def draw(shape):
    return shape(SIZE, make_generator("law")).double().numpy()


def points(distribution, split="train", **options):
    dataset = Toy(split, distribution=distribution, **options)
    return dataset.fetch(range(len(dataset))).x


def assert_uniform(values, low, high):
    assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-4


def moons_covariance():
    variance_x, variance_y, covariance = 3 / 4, 9 / 16 - 1 / math.pi, 1 / 8 - 1 / math.pi
    exact = np.array([[variance_x, covariance], [covariance, variance_y]])
    return 2 * exact / np.trace(exact)


def swissroll_covariance():
    def mean(function):
        return integrate.quad(function, 1.5 * math.pi, 4.5 * math.pi)[0] / (3 * math.pi)

    axes = (lambda t: t * math.cos(t), lambda t: t * math.sin(t))
    exact = np.array([[mean(lambda t, a=a, b=b: a(t) * b(t)) - mean(a) * mean(b) for a in axes] for b in axes])
    return 2 * exact / np.trace(exact)


COVARIANCES = {
    "checkerboard": np.array([[1, 3 / 16], [3 / 16, 1]]),
    "moons": moons_covariance(),
    "rings": np.eye(2),
    "swissroll": swissroll_covariance(),
    "gaussians": np.eye(2),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mean_and_covariance(distribution):
    """Mean 0, covariance (1 - b^2) C + b^2 I, within five standard errors."""
    x = points(distribution, size=SIZE).double().numpy()
    blur = DISTRIBUTIONS[distribution].blur
    covariance = (1 - blur**2) * COVARIANCES[distribution] + blur**2 * np.eye(2)
    products = np.einsum("ni,nj->nij", x, x)
    assert np.all(np.abs(x.mean(0)) < 5 * x.std(0) / math.sqrt(SIZE))
    assert np.all(np.abs(products.mean(0) - covariance) < 5 * products.std(0) / math.sqrt(SIZE))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_draws_are_deterministic_and_splits_independent(distribution):
    train = points(distribution, size=1000)
    assert train.shape == (1000, 2)
    assert train.dtype == torch.float32
    assert torch.equal(train, points(distribution, size=1000))
    others = points(distribution, "test", size=1000), points(distribution, size=1000, seed=1)
    for other in others:
        assert not set(map(tuple, train.tolist())) & set(map(tuple, other.tolist()))
        assert all(stats.ks_2samp(train[:, axis], other[:, axis]).pvalue > 1e-4 for axis in (0, 1))
        assert abs(np.corrcoef(train[:, 0], other[:, 0])[0, 1]) < 5 / math.sqrt(1000)


def test_checkerboard_fills_its_cells_evenly():
    x = points("checkerboard", size=SIZE).double().numpy()
    board = (x / math.sqrt(3) + 1) * 2
    cell = np.floor(board).astype(int)
    assert np.all((cell >= 0) & (cell < 4))
    assert np.all(cell.sum(1) % 2 == 0)
    counts = np.bincount(4 * cell[:, 0] + cell[:, 1], minlength=16)
    assert np.count_nonzero(counts) == 8
    assert stats.chisquare(counts[counts > 0]).pvalue > 1e-4
    for axis in (0, 1):
        assert_uniform((board - cell)[:, axis], 0, 1)
    assert np.array_equal(draw(checkerboard), draw(checkerboard))


def test_moons_are_two_half_circles():
    scale = math.sqrt((21 / 16 - 1 / math.pi) / 2)
    x = draw(moons) * scale + [1 / 2, 1 / 4]
    upper = np.abs(np.hypot(*x.T) - 1) < 1e-5
    from_lower = x - [1, 1 / 2]
    lower = np.abs(np.hypot(*from_lower.T) - 1) < 1e-5
    upper &= x[:, 1] > -1e-5
    lower &= from_lower[:, 1] < 1e-5
    assert np.all(upper | lower)
    assert stats.binomtest(int((upper & ~lower).sum()), SIZE).pvalue > 1e-4
    assert_uniform(np.arctan2(x[upper, 1], x[upper, 0]), 0, math.pi)
    assert_uniform(np.arctan2(-from_lower[lower, 1], from_lower[lower, 0]), 0, math.pi)


def test_rings_have_four_radii_and_uniform_angles():
    x = draw(rings)
    ring = np.hypot(*x.T) / math.sqrt(2 / 7.5)
    np.testing.assert_allclose(ring, ring.round(), atol=1e-5)
    counts = np.bincount(ring.round().astype(int))
    assert counts[0] == 0
    assert len(counts) == 5
    assert stats.chisquare(counts[1:]).pvalue > 1e-4
    assert_uniform(np.arctan2(x[:, 1], x[:, 0]), -math.pi, math.pi)


def test_swissroll_is_an_evenly_travelled_spiral():
    mean = np.array([2, 2 / (3 * math.pi)])
    scale = math.sqrt((9.75 * math.pi**2 - (mean**2).sum()) / 2)
    x = draw(swissroll) * scale + mean
    t = np.hypot(*x.T)
    assert_uniform(t, 1.5 * math.pi, 4.5 * math.pi)
    np.testing.assert_allclose(x, t[:, None] * np.stack([np.cos(t), np.sin(t)], 1), atol=2e-4)


def test_gaussians_are_eight_normal_modes():
    centers = np.unique(draw(gaussians).round(5), axis=0)
    assert len(centers) == 8
    np.testing.assert_allclose(np.hypot(*centers.T), math.sqrt(2), atol=2e-5)
    x = points("gaussians", size=SIZE).double().numpy()
    offsets = x[:, None] - math.sqrt(0.99) * centers
    nearest = np.linalg.norm(offsets, axis=2).argmin(1)
    assert stats.chisquare(np.bincount(nearest, minlength=8)).pvalue > 1e-4
    residual = offsets[np.arange(SIZE), nearest] / 0.1
    assert all(stats.kstest(residual[:, axis], "norm").pvalue > 1e-4 for axis in (0, 1))


def test_it_is_continuous_unlabelled_data():
    dataset = Toy("test", distribution="moons", size=7)
    assert (dataset.shape, dataset.quantizer, dataset.num_classes, len(dataset)) == ((2,), None, 0, 7)
    assert dataset.fetch([0]).y is None


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("unknown toy distribution 'moon'.*did you mean 'moons'", {"distribution": "moon"}),
        ("unknown split of toy 'valid'; choose from 'test', 'train'", {"split": "valid"}),
        ("size must be at least 1, got 0", {"size": 0}),
    ],
)
def test_wrong_options(match, options):
    with pytest.raises(ValueError, match=match):
        Toy(**options)
