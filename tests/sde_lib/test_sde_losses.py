"""DDPM's loss is the continuous one; minima are known; weights are what they say."""

import math

import numpy as np
import pytest
import torch
from oracles import PROCESSES, gaussian, generator, slope
from scipy import stats

from sde_lib import TIME_LAWS, VPSDE, WEIGHTINGS, CosineVPSDE, GaussianMixture, ddpm_loss, ddpm_schedule, dsm_loss
from sde_lib.losses import sample_time
from sde_lib.sde import match_dims

every_process = pytest.mark.parametrize("name", PROCESSES)


def network(x, t):
    """Nonlinear, and sensitive to time."""
    t = match_dims(t, x)
    return torch.tanh(x * (1 + 2 * t)) + torch.sin(7 * t + x) * torch.cos(3 * t)


def batch(n, shape, seed=0, dtype=torch.float64):
    return torch.randn(2, n, *shape, generator=generator(seed), dtype=dtype)


def exact_eps(sde, law):
    score_fn = law.score_fn(sde)
    return lambda x, t: -match_dims(sde.sigma(t), x) * score_fn(x, t)


# DDPM's loss and the continuous one.

CHAINS = [(VPSDE(), 500), (VPSDE(), 1000), (CosineVPSDE(), 1000)]
INDICES = {
    "first": lambda n: torch.zeros(16, dtype=torch.int64),
    "last": lambda n: torch.full((16,), n - 1),
    "ends": lambda n: torch.tensor([0, n - 1] * 8),
    "random": lambda n: torch.randint(n, (16,), generator=generator(3)),
    "equal": lambda n: torch.full((16,), n // 3),
    "falling": lambda n: torch.linspace(n - 1, 0, 16).long(),
}


@pytest.mark.parametrize(("sde", "n"), CHAINS, ids=["vp-500", "vp-1000", "cosine-1000"])
@pytest.mark.parametrize("kind", INDICES)
@pytest.mark.parametrize("shape", [(3,), (3, 4, 4)])
def test_the_continuous_loss_is_ddpm_s(sde, n, kind, shape):
    schedule = ddpm_schedule(sde, n)
    x0, eps = batch(16, shape)
    index = INDICES[kind](n)
    discrete = ddpm_loss(schedule, network, x0, index=index, eps=eps)
    continuous = dsm_loss(sde, network, x0, t=schedule.times[index], eps=eps)
    assert torch.allclose(discrete, continuous, rtol=1e-10, atol=0)


@pytest.mark.parametrize("n", [500, 1000])
def test_ddpm_loss_is_l_simple(n):
    """|eps - eps_theta(sqrt(a) x0 + sqrt(1 - a) eps)|^2 / D of arXiv 2006.11239, in numpy."""
    betas = np.linspace(0.1 / n, 20 / n, n)
    a = np.cumprod(1 - betas)
    x0, eps = batch(12, (5,), seed=1)
    index = torch.linspace(0, n - 1, 12).long()
    signal = a[index.numpy()][:, None]
    x = np.sqrt(signal) * x0.numpy() + np.sqrt(1 - signal) * eps.numpy()
    expected = ((np.tanh(x) - eps.numpy()) ** 2).mean(1)
    loss = ddpm_loss(ddpm_schedule(VPSDE(), n), lambda x, t: torch.tanh(x), x0, index=index, eps=eps)
    assert np.allclose(loss.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [500, 1000])
def test_ddpm_network_is_told_the_continuous_time(n):
    schedule, seen = ddpm_schedule(VPSDE(), n), []
    index = torch.tensor([0, n // 2, n - 1])
    x0, eps = batch(3, (2,))
    ddpm_loss(schedule, lambda x, t: seen.append(t) or x, x0, index=index, eps=eps)
    assert torch.equal(seen[0], schedule.times[index])


def test_expectation_over_the_chain_tends_to_the_integral_over_time():
    """For one x0 and eps the mean over all N steps against the integral over t in [0, 1]: first order in 1/N."""
    sde = VPSDE()
    x0, eps = batch(1, (6,), seed=2)
    u, w = np.polynomial.legendre.leggauss(200)
    u, w = torch.from_numpy((u + 1) / 2), torch.from_numpy(w / 2)  # t = u^2 makes sigma smooth at 0
    many = dsm_loss(sde, network, x0.expand(200, 6), t=u**2, eps=eps.expand(200, 6))
    integral = float((w * 2 * u * many).sum())
    sizes, errors = [250, 500, 1000, 2000, 4000], []
    for n in sizes:
        chain = ddpm_loss(ddpm_schedule(sde, n), network, x0.expand(n, 6), index=torch.arange(n), eps=eps.expand(n, 6))
        errors.append(abs(float(chain.mean()) - integral))
    assert slope(sizes, errors) == pytest.approx(-1, abs=0.15)
    assert errors[1] < 0.01 * integral


def test_indices_are_uniform_over_the_chain():
    schedule = ddpm_schedule(VPSDE(0.1, 5.0), 20)
    seen = []
    x0 = torch.zeros(20_000, 1, dtype=torch.float64)
    ddpm_loss(schedule, lambda x, t: seen.append(t) or x, x0, generator=generator(5))
    steps = torch.searchsorted(schedule.times, seen[0])
    assert torch.equal(schedule.times[steps], seen[0])
    assert stats.chisquare(torch.bincount(steps, minlength=20).numpy()).pvalue > 1e-3


# What the losses are, sample by sample.

EXPECTED_WEIGHTS = {
    "uniform": lambda sde, t: torch.ones_like(t),
    "likelihood": lambda sde, t: sde.diffusion(t) ** 2 / sde.marginal(t)[1] ** 2,
}


@every_process
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("shape", [(4,), (3, 2, 2)])
def test_loss_is_the_weighted_mean_square(name, weighting, shape):
    sde = PROCESSES[name]
    x0, eps = batch(10, shape)
    t = torch.linspace(sde.t_min, sde.T, 10, dtype=torch.float64)
    alpha, sigma = sde.marginal(t)
    weight = EXPECTED_WEIGHTS[weighting](sde, t)
    loss = dsm_loss(sde, network, x0, weighting=weighting, t=t, eps=eps)
    assert loss.shape == (10,)
    for i in range(10):
        x = alpha[i] * x0[i] + sigma[i] * eps[i]
        error = network(x, t[i]) - eps[i]
        assert float(loss[i]) == pytest.approx(float(weight[i] * (error**2).sum() / x.numel()), rel=1e-12)


@every_process
def test_likelihood_weight_is_g2_on_the_squared_score_error(name):
    sde = PROCESSES[name]
    x0, eps = batch(50, (3,))
    t = torch.logspace(math.log10(sde.t_min), 0, 50).double()
    alpha, sigma = (match_dims(v, x0) for v in sde.marginal(t))
    x = alpha * x0 + sigma * eps
    score_error = -network(x, t) / sigma - (-(x - alpha * x0) / sigma**2)
    loss = dsm_loss(sde, network, x0, weighting="likelihood", t=t, eps=eps)
    assert torch.allclose(loss, sde.diffusion(t) ** 2 * score_error.square().mean(1), rtol=1e-9)


@every_process
def test_likelihood_weight_is_the_rate_of_log_snr(name):
    sde = PROCESSES[name]
    t = torch.logspace(math.log10(sde.t_min), 0, 200).double().requires_grad_()
    (rate,) = torch.autograd.grad(sde.log_snr(t).sum(), t)
    t = t.detach()
    zero = torch.zeros(200, 1, dtype=torch.float64)
    loss = dsm_loss(sde, lambda x, t: torch.ones_like(x), zero, weighting="likelihood", t=t, eps=zero)
    assert torch.allclose(loss, -rate, rtol=1e-9)


# Minima.


@every_process
@pytest.mark.parametrize("time", [1e-3, 0.1, 0.4, 0.9])
def test_minimum_for_gaussian_data(name, time):
    """E |eps_hat - eps|^2 / D = mean of alpha^2 v / (alpha^2 v + sigma^2): the posterior variance of eps."""
    sde = PROCESSES[name]
    law, _, variance = gaussian((4,))
    n = 20_000
    x0 = law.sample(n, generator=generator(6), dtype=torch.float64)
    alpha, sigma = sde.marginal(torch.tensor(time, dtype=torch.float64))
    loss = dsm_loss(sde, exact_eps(sde, law), x0, t=time, generator=generator(7))
    minimum = float((alpha**2 * variance / (alpha**2 * variance + sigma**2)).mean())
    assert abs(float(loss.mean()) - minimum) < 4 * float(loss.std()) / math.sqrt(n)
    worse = dsm_loss(sde, lambda x, t: exact_eps(sde, law)(x, t) + 0.1, x0, t=time, generator=generator(7))
    # any other predictor adds its mean squared distance from the exact one
    assert float((worse - loss).mean()) == pytest.approx(
        0.01, abs=4 * float((worse - loss).std()) / math.sqrt(n) + 1e-9
    )


@every_process
@pytest.mark.parametrize("time", [0.05, 0.4])
def test_minimum_for_a_mixture(name, time):
    """1 - sigma^2 E|score|^2, by numerical integration in one dimension."""
    sde, n = PROCESSES[name], 40_000
    law = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0], [0.6]]), std=torch.tensor([0.2, 0.4]))
    alpha, sigma = (float(v) for v in sde.marginal(torch.tensor(time, dtype=torch.float64)))
    reach = 12 * (alpha + sigma)
    x = torch.linspace(-reach, reach, 40_001, dtype=torch.float64)[:, None]
    mass = law.log_prob(x, sde, time).exp() * float(x[1] - x[0])
    minimum = 1 - sigma**2 * float((mass * law.score(x, sde, time)[:, 0] ** 2).sum())
    x0 = law.sample(n, generator=generator(8), dtype=torch.float64)
    loss = dsm_loss(sde, exact_eps(sde, law), x0, t=time, generator=generator(9))
    assert abs(float(loss.mean()) - minimum) < 4 * float(loss.std()) / math.sqrt(n)


# Randomness and arguments.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["dsm", "ddpm"])
def test_losses_are_functions_of_the_generator(loss, dtype):
    x0, state = torch.randn(8, 3, generator=generator(), dtype=dtype), torch.get_rng_state()

    def value(seed):
        if loss == "dsm":
            return dsm_loss(VPSDE(), network, x0, generator=generator(seed))
        return ddpm_loss(ddpm_schedule(VPSDE()), network, x0, generator=generator(seed))

    first = value(1)
    assert first.dtype == dtype
    assert torch.equal(first, value(1))
    assert not torch.equal(first, value(2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("loss", ["dsm", "ddpm"])
def test_noise_is_standard_and_independent_of_time(loss):
    """x0 = 0 and eps_fn = 0: the loss is eps^2, chi-square of one degree, whatever t is."""
    seen = []
    x0 = torch.zeros(20_000, 1, dtype=torch.float64)

    def silent(x, t):
        seen.append((x, t))
        return torch.zeros_like(x)

    if loss == "dsm":
        values = dsm_loss(VPSDE(), silent, x0, generator=generator(17))
    else:
        values = ddpm_loss(ddpm_schedule(VPSDE()), silent, x0, generator=generator(17))
    (x, t), sde = seen[0], VPSDE()
    assert stats.kstest(values.numpy(), stats.chi2(1).cdf).pvalue > 1e-3
    assert stats.kstest((x[:, 0] / sde.sigma(t)).numpy(), "norm").pvalue > 1e-3
    assert abs(stats.spearmanr(values.numpy(), t.numpy()).statistic) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("time", [0.3, torch.tensor(0.3), torch.tensor([0.3])])
def test_one_time_for_the_batch(time):
    x0, eps = batch(6, (3,), dtype=torch.float32)
    each = dsm_loss(VPSDE(), network, x0, t=torch.full((6,), 0.3), eps=eps)
    assert torch.equal(dsm_loss(VPSDE(), network, x0, t=time, eps=eps), each)


def test_losses_are_differentiable():
    """d/da of mean (a x - eps)^2 = 2 mean x (a x - eps)."""
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    sde = VPSDE()
    x0, eps = batch(6, (3,))
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    dsm_loss(sde, lambda x, t: scale * x, x0, t=t, eps=eps).mean().backward()
    x = sde.perturb(x0, t, eps)
    assert torch.allclose(scale.grad, (2 * x * (0.3 * x - eps)).mean(), rtol=1e-12)


def test_unknown_names():
    x0, laws = torch.zeros(2, 2), ", ".join(map(repr, sorted(TIME_LAWS)))
    with pytest.raises(ValueError, match=r"unknown weighting 'uniforme'; choose from .*; did you mean 'uniform'\?"):
        dsm_loss(VPSDE(), network, x0, weighting="uniforme")
    with pytest.raises(ValueError, match=r"unknown time law 'logsnr'; choose from .*; did you mean 'log_snr'\?"):
        dsm_loss(VPSDE(), network, x0, time_law="logsnr")
    with pytest.raises(ValueError, match=rf"unknown time law 'cosine'; choose from {laws}"):
        sample_time(VPSDE(), 3, law="cosine")


@pytest.mark.parametrize("law", TIME_LAWS)
def test_importance_of_given_times_is_refused(law):
    with pytest.raises(ValueError, match=r"importance=True divides by the density .*, but t is given; leave t out"):
        dsm_loss(VPSDE(), network, torch.zeros(2, 2), time_law=law, importance=True, t=torch.tensor(0.5))


def test_times_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"time has shape \(3,\); give \(\) or \(B,\) with B = 2, the batch of x"):
        dsm_loss(VPSDE(), network, torch.zeros(2, 2), t=torch.full((3,), 0.5))
