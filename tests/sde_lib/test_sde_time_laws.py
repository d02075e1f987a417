"""Laws of time are what they say; as proposals they leave the expectation of the loss, and lower its variance."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import PROCESSES, gaussian, generator
from scipy import stats

from sde_lib import TIME_LAWS, VPSDE, WEIGHTINGS, dsm_loss, sample_time
from sde_lib.sde import match_dims

every_process = pytest.mark.parametrize("name", PROCESSES)
every_law = pytest.mark.parametrize("law", TIME_LAWS)


def network(x, t):
    """Nonlinear, and sensitive to time."""
    return torch.tanh(2 * x) + torch.sin(7 * match_dims(t, x) + x)


def ends(sde):
    """lambda(t_min), lambda(T)."""
    return sde.log_snr(torch.tensor([sde.t_min, sde.T], dtype=torch.float64))


def quadrature(sde, n=80, panels=30):
    """Gauss-Legendre nodes and weights on [t_min, T], in panels of equal ratio, which also end at the kinks."""
    edges = np.geomspace(sde.t_min, sde.T, panels + 1)
    edges = np.sort(np.concatenate([edges, [b for b in sde.breakpoints if sde.t_min < b < sde.T]]))
    x, w = np.polynomial.legendre.leggauss(n)
    nodes = [(a + b) / 2 + (b - a) / 2 * x for a, b in pairwise(edges)]
    weights = [(b - a) / 2 * w for a, b in pairwise(edges)]
    return torch.from_numpy(np.concatenate(nodes)), torch.from_numpy(np.concatenate(weights))


# The laws.


def falling_log_snr(sde, t):
    most, least = ends(sde)
    return (most - sde.log_snr(t)) / (most - least)


def falling_logistic(sde, t):
    """Of lambda ~ logistic(2.5, 2), cut to the range of the process."""
    cdf = stats.logistic(2.5, 2.0).cdf
    most, least = cdf(ends(sde).numpy())
    return torch.from_numpy((most - cdf(sde.log_snr(t).numpy())) / (most - least))


# What is uniform on [0, 1].
UNIFORM_IN = {
    "uniform": lambda sde, t: (t - sde.t_min) / (sde.T - sde.t_min),
    "log_snr": falling_log_snr,
    "logistic": falling_logistic,
}


@every_process
@every_law
def test_law_of_time(name, law):
    sde = PROCESSES[name]
    t = sample_time(sde, 20_000, law=law, generator=generator(10), dtype=torch.float64)
    assert t.shape == (20_000,)
    assert t.min() >= sde.t_min
    assert t.max() <= sde.T
    assert stats.kstest(UNIFORM_IN[law](sde, t).numpy(), "uniform").pvalue > 1e-3


@every_process
@every_law
def test_quantile_function(name, law):
    """t rises or falls from end to end, and u is recovered from it."""
    sde = PROCESSES[name]
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = TIME_LAWS[law](sde, u)
    assert t[0] == pytest.approx(sde.t_min, rel=1e-9)
    assert t[-1] == pytest.approx(sde.T, rel=1e-9)
    assert (t.diff() > 0).all()
    assert torch.allclose(UNIFORM_IN[law](sde, t), u, rtol=1e-9, atol=1e-9)


@every_process
@every_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_stay_inside_in_any_dtype(name, law, dtype):
    sde = PROCESSES[name]
    u = torch.tensor([0.0, 1e-7, 0.5, 1 - 2**-24], dtype=dtype)
    t = TIME_LAWS[law](sde, u)
    assert t.dtype == dtype
    assert t.min() >= torch.tensor(sde.t_min, dtype=dtype)
    assert t.max() <= sde.T
    assert sample_time(sde, 3, law=law, dtype=dtype).dtype == dtype


@every_process
@every_law
def test_density_integrates_to_one(name, law):
    sde = PROCESSES[name]
    t, weight = quadrature(sde)
    density = TIME_LAWS[law].density(sde, t)
    assert (density > 0).all()
    assert float((weight * density).sum()) == pytest.approx(1, abs=1e-10)


@every_process
@every_law
def test_density_is_the_slope_of_the_inverse_of_the_quantile_function(name, law):
    """p(t) = 1 / (dt/du), and du/dt of the oracle's inverse, by central differences away from the kinks."""
    sde = PROCESSES[name]
    u = torch.linspace(0.003, 0.997, 500, dtype=torch.float64)
    t = TIME_LAWS[law](sde, u)
    smooth = (t[:, None] - torch.tensor([math.inf, *sde.breakpoints])).abs().min(1).values > 1e-4
    assert smooth.sum() > 490
    u, t = u[smooth], t[smooth]
    density, du, dt = TIME_LAWS[law].density(sde, t), 1e-6, 1e-6 * t
    slope = (TIME_LAWS[law](sde, u + du) - TIME_LAWS[law](sde, u - du)) / (2 * du)
    assert torch.allclose(density, 1 / slope, rtol=1e-6)
    slope = (UNIFORM_IN[law](sde, t + dt) - UNIFORM_IN[law](sde, t - dt)) / (2 * dt)
    assert torch.allclose(density, slope, rtol=1e-6)


@every_process
@every_law
def test_density_keeps_its_digits_in_float32(name, law):
    """From t_min on; cosine's beta, 1 / (1 - t) near its kink at 1 - t = 0.002, is the worst conditioned."""
    sde = PROCESSES[name]
    t = torch.logspace(math.log10(sde.t_min), 0, 2001).clamp(sde.t_min, sde.T)
    density = TIME_LAWS[law].density(sde, t)
    assert density.dtype == torch.float32
    assert torch.allclose(density.double(), TIME_LAWS[law].density(sde, t.double()), rtol=3e-5, atol=0)


# Even times.


@every_law
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_low_discrepancy_covers_evenly(law, size):
    """Exactly one time in each of the batch's equal cells: the spacing of u is 1 / batch on the circle."""
    sde = VPSDE()
    t = sample_time(sde, size, law=law, low_discrepancy=True, generator=generator(11), dtype=torch.float64)
    u = UNIFORM_IN[law](sde, t).sort().values
    gaps = torch.cat([u.diff(), 1 - u[-1:] + u[:1]])
    assert torch.allclose(gaps, torch.full((size,), 1 / size, dtype=torch.float64), rtol=0, atol=1e-9)


@every_law
def test_low_discrepancy_keeps_the_law_of_every_sample(law):
    sde, draw = VPSDE(), generator(12)
    t = torch.stack(
        [sample_time(sde, 4, law=law, low_discrepancy=True, generator=draw, dtype=torch.float64) for _ in range(2000)]
    )
    for column in t.T:
        assert stats.kstest(UNIFORM_IN[law](sde, column).numpy(), "uniform").pvalue > 1e-3


# What the loss makes of them.


@every_law
@pytest.mark.parametrize("spread", [False, True])
def test_dsm_loss_draws_time_by_the_law_asked_for(law, spread):
    """The times that the network sees are those of ``sample_time`` with the same generator."""
    sde, seen = VPSDE(), []
    options = {"low_discrepancy": spread, "generator": generator(16)}
    dsm_loss(sde, lambda x, t: seen.append(t) or x, torch.zeros(64, 3), time_law=law, **options)
    assert torch.equal(seen[0], sample_time(sde, 64, law=law, low_discrepancy=spread, generator=generator(16)))


@every_process
@every_law
def test_importance_divides_by_the_relative_density(name, law):
    """Of t against uniform t, sample by sample; of uniform t itself it is 1."""
    sde, seen = PROCESSES[name], []
    x0 = torch.randn(64, 3, generator=generator(3), dtype=torch.float64)

    def watched(x, t):
        seen.append(t)
        return network(x, t)

    plain, divided = (
        dsm_loss(sde, watched, x0, time_law=law, importance=importance, generator=generator(4))
        for importance in (False, True)
    )
    assert torch.equal(seen[0], seen[1])
    relative = (sde.T - sde.t_min) * TIME_LAWS[law].density(sde, seen[0])
    assert torch.allclose(divided * relative, plain, rtol=1e-12)
    assert law != "uniform" or torch.allclose(divided, plain, rtol=1e-12)


@every_process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_of_importance_sampled_likelihood_is_constant(name, dtype):
    """(lambda(t_min) - lambda(T)) / (T - t_min): the loss where every squared error is 1."""
    sde, zero = PROCESSES[name], torch.zeros(1000, 1, dtype=dtype)
    options = {"weighting": "likelihood", "time_law": "log_snr", "importance": True, "generator": generator(18)}
    weight = dsm_loss(sde, lambda x, t: torch.ones_like(x), zero, eps=zero, **options)
    most, least = ends(sde)
    constant = ((most - least) / (sde.T - sde.t_min)).to(dtype).expand(1000)
    assert torch.allclose(weight, constant, rtol=8 * torch.finfo(dtype).eps, atol=0)


@every_process
@pytest.mark.parametrize(("weighting", "law"), [("likelihood", "log_snr"), *(("uniform", law) for law in TIME_LAWS)])
def test_importance_keeps_the_integral_over_time(name, weighting, law):
    """For one x0 and eps, a batch of n even times is a rectangle rule in u, of error about the greatest weight / n."""
    sde, n = PROCESSES[name], 100_000
    x0, eps = torch.randn(2, 1, 5, generator=generator(4), dtype=torch.float64)
    t, weight = quadrature(sde)
    one = {"weighting": weighting, "t": t, "eps": eps.expand(len(t), 5)}
    over_t = float((weight * dsm_loss(sde, network, x0.expand(len(t), 5), **one)).sum() / (sde.T - sde.t_min))
    even = {"low_discrepancy": True, "importance": True, "eps": eps.expand(n, 5), "generator": generator(5)}
    over_u = dsm_loss(sde, network, x0.expand(n, 5), weighting=weighting, time_law=law, **even)
    assert float(over_u.mean()) == pytest.approx(over_t, rel=5e-4)


# Variance, with the exact network of Gaussian data: given t, eps_hat - eps is N(0, diag(m)) with
# m = alpha^2 v / (alpha^2 v + sigma^2), so the squared error has mean L = mean(m) and variance V = 2 sum(m^2) / D^2.

_, MEAN, VARIANCE = gaussian((64,))
LIKELIHOOD = {"weighting": "likelihood", "importance": True}


def exact_loss(sde, batch, seed, **options):
    draw = generator(seed)
    x0 = MEAN + VARIANCE.sqrt() * torch.randn(batch, 64, generator=draw, dtype=torch.float64)

    def eps_hat(x, t):
        alpha, sigma = (match_dims(v, x) for v in sde.marginal(t))
        return sigma * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)

    return dsm_loss(sde, eps_hat, x0, generator=draw, **options)


def moments(sde, law, weighting):
    """E, Var and E Var[. | t] of the importance-sampled loss, by quadrature: no sampling misses the tails."""
    t, step = quadrature(sde)
    alpha, sigma = (v[:, None] for v in sde.marginal(t))
    m = alpha**2 * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    mean, variance = m.mean(1), 2 * m.square().sum(1) / 64**2
    weight = WEIGHTINGS[weighting](sde, t) / (sde.T - sde.t_min)
    expected, square = (step * weight * mean).sum(), step * weight**2 / TIME_LAWS[law].density(sde, t)
    within = (square * variance).sum()
    return float(expected), float((square * mean**2).sum() + within - expected**2), float(within)


@every_process
@every_law
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_expectation_is_that_of_uniform_time(name, law, weighting):
    """Within four exact standard errors of the closed form."""
    sde, n = PROCESSES[name], 5000
    expected, variance, _ = moments(sde, law, weighting)
    loss = exact_loss(sde, n, 20, weighting=weighting, time_law=law, importance=True)
    assert abs(float(loss.mean()) - expected) < 4 * math.sqrt(variance / n)
    assert expected == pytest.approx(moments(sde, "uniform", weighting)[0], rel=1e-12)


# Var under uniform t / Var under log_snr, rounded down. VE's lambda is linear in t: its two laws are one.
REDUCTION = {"vp": 800, "subvp": 1400, "ve": 0.999, "cosine": 500, "edm": 2.5, "user": 5}


@pytest.mark.parametrize("name", REDUCTION)
def test_importance_sampling_cuts_the_variance_of_the_likelihood_loss(name):
    """By the factor above, exactly; and the samples have the smaller variance, within four standard errors."""
    sde, n = PROCESSES[name], 20_000
    plain, sampled = (moments(sde, law, "likelihood")[1] for law in ("uniform", "log_snr"))
    assert plain / sampled > REDUCTION[name]
    square = (exact_loss(sde, n, 21, time_law="log_snr", **LIKELIHOOD) - moments(sde, "log_snr", "likelihood")[0]) ** 2
    assert abs(float(square.mean()) - sampled) < 4 * float(square.std()) / math.sqrt(n)


@pytest.mark.parametrize(
    ("weighting", "law", "factor"),
    [("likelihood", "log_snr", 8), ("uniform", "uniform", 10), ("uniform", "log_snr", 12), ("uniform", "logistic", 4)],
)
def test_low_discrepancy_cuts_the_variance_of_the_mean(weighting, law, factor):
    """Over batches of 128 (measured: 15, 20, 22, 7); what remains is hardly more than the variance t has no part in."""
    sde, n = VPSDE(), 300
    options = {"weighting": weighting, "time_law": law, "importance": True, "low_discrepancy": True}
    means = torch.stack([exact_loss(sde, 128, 1000 + i, **options).mean() for i in range(n)])
    expected, variance, within = moments(sde, law, weighting)
    assert abs(float(means.mean()) - expected) < 4 * float(means.std()) / math.sqrt(n)
    assert variance / (128 * float(means.var())) > factor
    assert 128 * float(means.var()) < 1.4 * within
