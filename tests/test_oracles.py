"""The two-sample test of ``oracles``: its value, its level, and its power. (Of ``assert_law``: test_sde_mixture.py.)"""

import numpy as np
import oracles
import pytest
import torch
from scipy import stats

from sde_lib import GaussianMixture

LAW = oracles.mixture_2d()


def draw(law, n, seed):
    return law.sample(n, generator=oracles.generator(seed), dtype=torch.float64)


def test_the_energy_distance_is_scipys_on_a_line():
    """There it is 2 integral (F - G)^2, of which scipy returns the root."""
    x, y = (draw(GaussianMixture([1.0], torch.tensor([[m]]), std=1.0), n, n) for m, n in ((0.0, 50), (0.3, 80)))
    found = oracles.energy_distance(x, y)
    assert found == pytest.approx(stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2, rel=1e-4)


def test_the_energy_distance_is_its_definition_in_any_shape():
    x, y = (torch.randn(n, 2, 3, 4, generator=oracles.generator(n), dtype=torch.float64) for n in (7, 11))

    def mean_distance(a, b):
        return np.mean([[float((p - q).norm()) for q in b] for p in a])

    expected = 2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)
    assert oracles.energy_distance(x, y) == pytest.approx(expected, rel=1e-4)
    assert oracles.energy_test(x, y)[0] == pytest.approx(expected, rel=1e-4)


def test_the_threshold_is_the_quantile_of_the_permutations():
    """At a level that can be counted, against scipy's own permutation test (three standard errors of the count)."""
    x, y = draw(LAW, 40, 1), draw(LAW, 60, 2)
    _, threshold = oracles.energy_test(x, y, level=0.05)
    points, draws = torch.cat([x, y]), np.random.default_rng(0)
    counted = []
    for _ in range(1000):
        order = torch.from_numpy(draws.permutation(100))
        counted.append(oracles.energy_distance(points[order[:40]], points[order[40:]]))
    share = np.mean(np.array(counted) > threshold)
    assert share == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 * (1 / 1000 + 1 / 300)))


@pytest.mark.parametrize("level", [0.1, 0.01])
def test_samples_of_one_law_are_told_apart_as_often_as_stated(level):
    repeats, rejected = 300, 0
    for seed in range(repeats):
        distance, threshold = oracles.energy_test(draw(LAW, 60, seed), draw(LAW, 90, 10_000 + seed), level)
        rejected += distance > threshold
    assert stats.binomtest(rejected, repeats, level).pvalue > 1e-3


WRONG = {
    "weights": lambda w, m, c: (torch.tensor([0.47, 0.53]), m, c),
    "means": lambda w, m, c: (w, m + 0.12, c),
    "scale": lambda w, m, c: (w, m, 3 * c),
    "leaning the other way": lambda w, m, c: (w, m, c * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])),
    "mass between the components": lambda w, m, c: (
        torch.cat([0.6 * w, torch.tensor([0.4])]),
        torch.cat([m, 0 * m[:1]]),
        torch.cat([c, 0.3 * c.mean(0)[None]]),
    ),
    "a Gaussian of the same moments": lambda w, m, c: ([1.0], LAW.mean[None], LAW.covariance),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_slightly_wrong_law_is_rejected_and_the_right_one_is_not(wrong):
    """With the sizes of the tests of samplers. The distance sees shapes; scales are seen sooner by ``assert_law``."""
    x, y = draw(LAW, 1000, 5), draw(LAW, 1000, 6)
    oracles.assert_same_law(x, y)
    law = GaussianMixture(*WRONG[wrong](LAW.weights, LAW.means, LAW.covariances))
    with pytest.raises(AssertionError, match=r"energy distance .* of 1000 and 1000 samples, above"):
        oracles.assert_same_law(draw(law, 1000, 7), y)


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(AssertionError, match="not finite"):
        oracles.energy_distance(torch.tensor([[1.0], [float("nan")]]), torch.zeros(2, 1))
