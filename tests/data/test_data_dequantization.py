"""Dequantisers: they stay in the cell of the level, and log q is the density by which they do."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from data import Dequantized, Quantizer, TruncatedNormalDequantizer, UniformDequantizer
from data.randomness import make_generator

ALMOST_1 = 1 - 2**-24
RANGES = [(levels, low, high) for levels in (2, 17, 256) for low, high in ((-1.0, 1.0), (0.0, 1.0), (3.0, 10.1))]


def truncated(tau, levels=5, alpha=0.9, low=-1.0, high=1.0):
    """The dequantiser whose noise is cut off at tau deviations, (itself, distance of two points after the mean)."""
    distance = alpha * (high - low) / (levels - 1)
    return TruncatedNormalDequantizer(Quantizer(levels, low, high), alpha, distance / (2 * tau)), distance


# Uniform


@pytest.mark.parametrize(("levels", "low", "high"), RANGES)
def test_uniform_noise_stays_in_the_bin_of_its_level(levels, low, high):
    quantizer = Quantizer(levels, low, high)
    v = torch.arange(levels, dtype=torch.uint8).repeat(500, 1)
    u = torch.rand(v.shape, generator=make_generator("uniform"))
    u[:2] = torch.tensor([[0.0], [ALMOST_1]])
    x, log_q = UniformDequantizer(quantizer)(v, u)
    assert x.dtype == torch.float32
    assert torch.equal(quantizer.decode(x), v)
    assert log_q.shape == (500,)
    assert log_q.tolist() == pytest.approx([-levels * math.log((high - low) / levels)] * 500, rel=1e-14)


# Truncated normal


@pytest.mark.parametrize("tau", [0.3, 1.5, 3.9, 60.0])
def test_truncated_noise_has_the_density_it_says(tau):
    """log q is scipy's density at x, over several dimensions; with all points in one cell."""
    dequantize, distance = truncated(tau)
    v = torch.randint(5, (200, 1, 2, 3), dtype=torch.uint8, generator=make_generator("levels"))
    x, log_q = dequantize(v, torch.rand(v.shape, generator=make_generator("u")))
    centre, sigma = 0.9 * (v.double() / 2 - 1), distance / (2 * tau)
    z = (x.double() - centre) / sigma
    assert x.dtype == torch.float32
    assert z.abs().max() <= tau * (1 + 1e-6)
    expected = stats.truncnorm.logpdf(z.clamp(-tau, tau), -tau, tau) - math.log(sigma)
    np.testing.assert_allclose(log_q, expected.sum((1, 2, 3)), rtol=0, atol=2e-7 / sigma * min(tau, 5) * 6)


@pytest.mark.parametrize("tau", [0.3, 1.5, 3.9, 60.0])
def test_truncated_noise_follows_its_law(tau):
    dequantize, distance = truncated(tau)
    v = torch.full((20_000, 1), 3, dtype=torch.uint8)
    x, _ = dequantize(v, torch.rand(v.shape, generator=make_generator("law", int(tau))))
    law = stats.truncnorm(-tau, tau, loc=0.9 * 0.5, scale=distance / (2 * tau))
    assert stats.kstest(x.flatten().double(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("tau", [0.3, 1.5, 3.9, 60.0])
def test_the_truncated_density_integrates_to_one_over_its_cell(tau):
    """Trapezia over the x that come out, with the q that comes with them, against the truth; the map is monotone."""
    dequantize, _ = truncated(tau)
    rim = min(tau, 5.3)
    z = torch.linspace(-rim, rim, 4001, dtype=torch.float64)
    u = (torch.special.ndtr(z) - stats.norm.cdf(-tau)) / (1 - 2 * stats.norm.cdf(-tau))
    for level in range(5):
        x, log_q = dequantize(torch.full((4001, 1), level, dtype=torch.uint8), u.clamp(0, ALMOST_1)[:, None])
        x = x.double().flatten()
        assert torch.all(x.diff() >= 0)
        assert float(torch.trapezoid(log_q.exp(), x)) == pytest.approx(1, abs=2e-5)


@pytest.mark.parametrize("tau", [0.3, 1.5, 3.9])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_cells_of_neighbouring_levels_touch_but_do_not_overlap(levels, tau):
    dequantize, distance = truncated(tau, levels)
    v = torch.arange(levels, dtype=torch.uint8)[:, None]
    lowest, highest = (dequantize(v, torch.full((levels, 1), u)).x.double() for u in (0.0, ALMOST_1))
    gap = (lowest[1:] - highest[:-1]) / distance
    assert gap.min() > -2.4e-7 / distance  # two roundings to float32
    assert gap.max() < 1e-3


@pytest.mark.parametrize("tau", [1e-3, 3.9, 60.0, 1e4])
def test_the_ends_of_the_noise_are_finite_and_alike(tau):
    dequantize, distance = truncated(tau)
    v = torch.full((2, 1), 2, dtype=torch.uint8)  # the middle, 0
    x, log_q = dequantize(v, torch.tensor([[0.0], [ALMOST_1]]))
    assert x.isfinite().all()
    assert log_q.isfinite().all()
    assert float(x[0]) == pytest.approx(-float(x[1]), rel=1e-6)
    assert float(log_q[0]) == pytest.approx(float(log_q[1]), rel=1e-6)
    # u is one of 2^24 numbers: the first stands for the lowest 2^-24 of the law, whose median is 5.4 deviations out
    outermost = stats.truncnorm(-tau, tau).ppf(2**-25) * distance / (2 * tau)
    assert float(x[0]) == pytest.approx(outermost, rel=1e-5)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_coefficients_of_the_truncated_normal_are_positive(alpha, sigma):
    with pytest.raises(ValueError, match="both must be above 0"):
        TruncatedNormalDequantizer(Quantizer(), alpha, sigma)


# Importance weights


def cell(dequantizer, v):
    """Ends of the cell of the level v, by the definition."""
    quantizer = dequantizer.quantizer
    spread = quantizer.high - quantizer.low
    if isinstance(dequantizer, UniformDequantizer):
        return tuple(quantizer.low + spread * (v + side) / quantizer.levels for side in (0, 1))
    step = spread / (quantizer.levels - 1)
    return tuple(dequantizer.alpha * (quantizer.low + step * (v + side)) for side in (-0.5, 0.5))


@pytest.mark.parametrize(
    "dequantizer",
    [
        UniformDequantizer(Quantizer(3, -1.0, 2.0)),
        UniformDequantizer(Quantizer(4)),
        truncated(1.5, 3)[0],
        truncated(3.0, 4, low=-1.0, high=2.0)[0],
    ],
    ids=["uniform 3", "uniform 4", "normal 1.5", "normal 3"],
)
def test_the_mean_weight_is_the_mass_of_the_cell(dequantizer):
    """E_q[p / q] = P(v): the integral over u, for a mixture of two Gaussians in the plane."""
    weights, means, stds = (0.3, 0.7), ((-0.6, 0.2), (0.9, -0.1)), (0.4, 0.8)
    laws = [[stats.norm(m, std) for m in mean] for mean, std in zip(means, stds, strict=True)]
    s = (torch.arange(250, dtype=torch.float64) + 0.5) / 250
    shares = s**3 * (10 - 15 * s + 6 * s**2)  # dense at the ends, where the weights of the cut normal are largest
    density = 30 * s**2 * (1 - s) ** 2 / 250
    u, du = torch.cartesian_prod(shares, shares), torch.cartesian_prod(density, density).prod(1).numpy()
    for level in itertools.product(range(dequantizer.quantizer.levels), repeat=2):
        drawn = dequantizer(torch.tensor([level], dtype=torch.uint8).expand(len(u), 2), u)
        assert isinstance(drawn, Dequantized)
        x = drawn.x.double().numpy()
        p = sum(w * a.pdf(x[:, 0]) * b.pdf(x[:, 1]) for w, (a, b) in zip(weights, laws, strict=True))
        ends = [cell(dequantizer, v) for v in level]
        mass = sum(
            w * math.prod(law.cdf(high) - law.cdf(low) for law, (low, high) in zip(pair, ends, strict=True))
            for w, pair in zip(weights, laws, strict=True)
        )
        assert float((p * np.exp(-drawn.log_q.numpy()) * du).sum()) == pytest.approx(mass, rel=2e-4)
