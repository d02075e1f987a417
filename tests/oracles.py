"""Shared exact answers: processes, data whose every p_t is known, and a test of laws with stated errors.

Tests import it as ``import oracles`` (``tests/conftest.py`` puts this folder on the path).
"""

import math

import torch
from scipy import stats

from sde_lib import SDE, SDES, GaussianMixture


class LinearPath(SDE):
    """A process that the library does not have: alpha = 1 - 0.9 t and sigma = 0.02 + t, as a user would write it."""

    def log_alpha(self, t):
        return torch.log1p(-0.9 * t)

    def sigma(self, t):
        return 0.02 + t

    def drift_coeff(self, t):
        return -0.9 / (1 - 0.9 * t)

    def diffusion(self, t):
        return torch.sqrt(2 * self.sigma(t) - 2 * self.drift_coeff(t) * self.sigma(t).square())


PROCESSES = {name: build() for name, build in SDES.items()} | {"user": LinearPath()}
"""Every registered process with its defaults, and a user's own."""


def generator(seed=0):
    """A CPU generator of this seed."""
    return torch.Generator().manual_seed(seed)


# Data whose every p_t is known.


def mixture(shape):
    """Two correlated, unequal components of weights 0.35 and 0.65 on any shape; scale about that of [-1, 1] data."""
    d = math.prod(shape)
    draw = generator(d)
    rank = max(1, min(d // 2, 6))
    directions = torch.randn(2, d, rank, generator=draw, dtype=torch.float64)
    scales = 0.1 + 0.2 * torch.rand(2, d, generator=draw, dtype=torch.float64)
    covariances = 0.06 * directions @ directions.mT / rank + torch.diag_embed(scales.square())
    towards = torch.randn(d, generator=draw, dtype=torch.float64).sign() * min(1.0, 2 / math.sqrt(d))
    means = torch.stack([0.6 * towards + 0.1, -0.6 * towards])
    return GaussianMixture([0.35, 0.65], means.reshape(2, *shape), covariances)


def mixture_2d():
    """The standard mixture in the plane: one component leans to each side, and they overlap a little."""
    covariances = [[[0.20, 0.12], [0.12, 0.15]], [[0.10, -0.07], [-0.07, 0.20]]]
    means = [[0.7, 0.4], [-0.5, -0.3]]
    return GaussianMixture(
        [0.35, 0.65], torch.tensor(means, dtype=torch.float64), torch.tensor(covariances, dtype=torch.float64)
    )


def mixture_image():
    """The standard mixture on images (3, 8, 8)."""
    return mixture((3, 8, 8))


def gaussian(shape, seed=0):
    """One Gaussian of independent dimensions: (mixture, mean (*), variance (*))."""
    draw = generator(seed)
    mean = torch.randn(shape, generator=draw, dtype=torch.float64) * 0.5
    variance = 0.05 + torch.rand(shape, generator=draw, dtype=torch.float64)
    return GaussianMixture([1.0], mean[None], variance.flatten().diag()), mean, variance


def gaussian_flow(sde, x, t, s, mean, variance):
    """The probability-flow ODE's exact map x_t -> x_s when the data are N(mean, diag(variance)), in either direction.

    Each dimension keeps its standard score: (x_s - alpha_s mean) / std_s = (x_t - alpha_t mean) / std_t with
    std^2 = alpha^2 variance + sigma^2.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (sde.marginal(torch.tensor(u, dtype=torch.float64)) for u in (t, s))
    spread_t = alpha_t**2 * variance + sigma_t**2
    spread_s = alpha_s**2 * variance + sigma_s**2
    return alpha_s * mean + (spread_s / spread_t).sqrt() * (x - alpha_t * mean)


# Are these samples from that law?


def law_deviations(samples, law):
    """How far four statistics of the samples (n, *) lie from their exact values under a mixture, in sigmas.

    mean         every coordinate; exact standard error sqrt(C_ii / n)
    covariance   every entry; exact standard error from the mixture's fourth moments
    weights      the mean responsibility of each component, which is w_k; standard error at most sqrt(w (1 - w) / n)
    energy       the mean of sum_k r_k(x) (x - m_k)^T C_k^-1 (x - m_k), which is D; standard error at most
                 sqrt(2 D / n). Small errors of scale add up over all dimensions here.

    The largest deviation of a family of m statistics is quoted as the one of a single normal statistic with the same
    probability (Bonferroni), so that 4 means 6e-5 in any dimension.
    """
    x = samples.detach().cpu().double().flatten(1)
    n, d = x.shape
    assert x.isfinite().all(), "samples are not finite"
    assert tuple(samples.shape[1:]) == law.shape, f"samples {tuple(samples.shape)} against a law on {law.shape}"
    weights, covariances = law.weights, law.covariances
    mean = weights @ law.means
    centred = x - mean

    offset = law.means - mean  # (K, D); odd moments of each component vanish around it
    square, variance = offset.square(), covariances.diagonal(dim1=1, dim2=2)
    fourth = (
        torch.einsum("ki,kj->kij", square, square)
        + torch.einsum("ki,kj->kij", square, variance)
        + torch.einsum("ki,kj->kij", variance, square)
        + 4 * torch.einsum("ki,kj,kij->kij", offset, offset, covariances)
        + torch.einsum("ki,kj->kij", variance, variance)
        + 2 * covariances.square()
    )
    product_variance = torch.einsum("k,kij->ij", weights, fourth) - law.covariance.square()
    covariance_error = (centred.T @ centred / n - law.covariance) / (product_variance / n).sqrt()
    upper = torch.triu_indices(d, d)

    shares = law.responsibilities(samples.detach().cpu().double())
    from_each = (x - law.means[:, None]).mT  # (K, D, n)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariances), from_each, upper=False)
    energy = (shares * whitened.square().sum(1).T).sum(1)

    families = {
        "mean": (x.mean(0) - mean) / (law.covariance.diagonal() / n).sqrt(),
        "covariance": covariance_error[upper[0], upper[1]],
        "energy": (energy.mean() - d)[None] / math.sqrt(2 * d / n),
    }
    if len(weights) > 1:
        families["weights"] = (shares.mean(0) - weights) / (weights * (1 - weights) / n).sqrt()
    return {name: _single_sigmas(z) for name, z in families.items()}


def _single_sigmas(z):
    tail = min(0.5, len(z) * stats.norm.sf(float(z.abs().max())))
    return float(stats.norm.isf(tail))


def assert_law(samples, law, sigmas=4.0):
    """Fail unless the samples' mean, covariance, component weights and energy agree with the mixture's."""
    deviations = law_deviations(samples, law)
    worst = {name: round(value, 2) for name, value in deviations.items() if not value <= sigmas}
    assert not worst, f"{len(samples)} samples are off by more than {sigmas} sigmas: {worst} of {deviations}"


# Are these samples from the law of those?


def energy_distance(x, y):
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of two samples (n, *), (m, *): 0 for equal laws and for no others.

    Szekely and Rizzo, "Energy statistics", J. Stat. Plan. Inference 143 (2013).
    """
    pooled, first = _pooled(x, y)
    return float(_energy(pooled, first[None])[0])


def energy_test(x, y, level=1e-4, permutations=300):
    """(Energy distance of two samples, the threshold that equal laws exceed with probability ``level``).

    Under equal laws all assignments of the pooled points to the samples are equally likely. Their distances have the
    skewed law of a weighted sum of squares; the threshold is a quantile of the Pearson type III distribution (a shifted
    gamma) of their mean, variance and skewness, since quantiles this far out would take 10^5 permutations to count.
    """
    pooled, first = _pooled(x, y)
    shuffled = torch.rand(permutations, len(first), generator=generator(17)).argsort(1)
    found = _energy(pooled, torch.cat([first[None], first[shuffled]])).double()
    drawn = found[1:].numpy()
    threshold = stats.pearson3.isf(level, stats.skew(drawn), drawn.mean(), drawn.std())
    return float(found[0]), float(threshold)


def assert_same_law(x, y, level=1e-4):
    """Fail if the energy distance of two samples is above its permutation threshold."""
    distance, threshold = energy_test(x, y, level)
    assert distance <= threshold, (
        f"energy distance {distance:.3g} of {len(x)} and {len(y)} samples, above {threshold:.3g}"
    )


def _pooled(x, y):
    """(All distances (n + m, n + m), whether a point is of x (n + m,))."""
    points = torch.cat([x, y]).detach().cpu().double().flatten(1)
    assert points.isfinite().all(), "samples are not finite"
    return torch.cdist(points, points).float(), torch.arange(len(points)) < len(x)


def _energy(distances, first):
    """Energy distances (P,) for P assignments (P, n + m) of the points."""
    n, m = int(first[0].sum()), int((~first[0]).sum())
    weights = torch.where(first, 1 / n, -1 / m)
    return -((weights @ distances) * weights).sum(1)


# Orders of convergence.


def slope(sizes, errors):
    """Slope of log error over log size: the order of convergence, negative when the error falls as the size grows."""
    x, y = (torch.as_tensor(v, dtype=torch.float64).log() for v in (sizes, errors))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
