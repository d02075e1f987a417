"""Bounds of log p: exact expectations by quadrature, closed forms for Gaussian data, and DDPM's own formulas."""

import math

import numpy as np
import pytest
import torch
from oracles import PROCESSES, gaussian, generator, mixture

from sde_lib import EDMSDE, VESDE, VPSDE, GaussianMixture, SubVPSDE, ddpm_bound, ddpm_schedule, elbo
from sde_lib.sde import match_dims

every_process = pytest.mark.parametrize("name", PROCESSES)


def noise_of(law, sde):
    """The exact predicted noise -sigma s."""
    return lambda x, t: -match_dims(sde.sigma(t), x) * law.score(x, sde, t)


def smooth():
    """Two Gaussians on a line that overlap well, so that quadratures converge fast."""
    means, std = torch.tensor([[0.5], [-0.3]]), torch.tensor([0.45, 0.6])
    return GaussianMixture([0.35, 0.65], means, std=std)


def normal_nodes(n=64):
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def offset_nodes(panels=8, n=12):
    """Gauss-Legendre in each of the panels: exact also where offsets wrap around at a panel's edge."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    u = (np.arange(panels)[:, None] + (nodes + 1) / 2) / panels
    return torch.from_numpy(u.ravel()), torch.from_numpy(np.tile(weights / 2 / panels, panels))


def data_nodes(law, n=32):
    """Nodes (n K, 1) and weights of the law on one dimension."""
    h, w = normal_nodes(n)
    x = law.means + law.eigenvalues.sqrt() * h
    return x.reshape(-1, 1), (law.weights[:, None] * w).flatten()


def expected(sde, eps_fn, x0, samples=1):
    """Expectation of the bound's parts at x0 (B, 1) over offsets and noise, each (B,), by product quadrature."""
    (u, wu), (h, wh) = offset_nodes(), normal_nodes()
    weights = (wu[:, None] * wh).flatten()
    many = len(weights)
    result = elbo(
        sde,
        eps_fn,
        x0.repeat_interleave(many, 0),
        samples=samples,
        u=u.repeat_interleave(len(h)).repeat(len(x0)),
        eps=h.repeat(len(u) * len(x0))[:, None].expand(samples + 1, -1, 1),
    )
    return {name: getattr(result, name).reshape(len(x0), many) @ weights for name in result._fields[:-1]}


def kernel_mean(sde, x0, t, value):
    """E[value(x_t)] given x0 (B, 1), shape (B,)."""
    h, w = normal_nodes()
    alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
    x = alpha * x0 + sigma * h
    return value(x.reshape(-1, 1)).reshape(x.shape) @ w


# The SDE's bound.


@every_process
def test_the_exact_score_makes_the_bound_tight_at_every_point(name):
    """Let K(t) = KL(p(x_t | x0) || p_t). Its derivative is -g^2/2 E|score difference|^2: diffusion = K(t_min) - K(T).

    Adding the other two parts leaves, with e the exact denoising error at t_min,
    E log p_{t_min}(x_1) + log alpha_1 + 1/2 - e/2 - E[log p_T(x_T) - log prior(x_T)] in one dimension.
    """
    sde, law = PROCESSES[name], smooth()
    x0 = torch.tensor([[-1.1], [0.05], [0.9]], dtype=torch.float64)
    found = expected(sde, noise_of(law, sde), x0)
    alpha, sigma = sde.marginal(torch.tensor(sde.t_min, dtype=torch.float64))

    def missed(x):
        truth = (x.reshape(3, -1) - alpha * x0) / sigma
        return (noise_of(law, sde)(x, torch.tensor(sde.t_min).double()) - truth.reshape(-1, 1)).square()

    start = kernel_mean(sde, x0, sde.t_min, lambda x: law.log_prob(x, sde, sde.t_min))
    error = kernel_mean(sde, x0, sde.t_min, missed)
    mismatch = kernel_mean(sde, x0, sde.T, lambda x: law.log_prob(x, sde, sde.T) - sde.prior_log_prob(x))
    exact = start + alpha.log() + 0.5 - 0.5 * error - mismatch
    print(f"{name}: bound {found['log_prob'].tolist()}, exact {exact.tolist()}")
    torch.testing.assert_close(found["log_prob"], exact, rtol=0, atol=1e-7)


@every_process
def test_every_part_for_gaussian_data(name):
    """eps_hat - eps is Gaussian: E|.|^2 = sum of (alpha^4 v^2 + alpha^2 sigma^2 d^2) / (alpha^2 v + sigma^2)^2."""
    sde = PROCESSES[name]
    law, mean, variance = gaussian((1,))
    x0 = torch.tensor([[-0.7], [0.6]], dtype=torch.float64)
    distance2, v = (x0 - mean).square()[:, 0], variance[0]

    def error(t):
        alpha, sigma = sde.marginal(t)
        return (alpha**4 * v**2 + alpha**2 * sigma**2 * distance2) / (alpha**2 * v + sigma**2) ** 2

    ends = torch.tensor([sde.T, sde.t_min], dtype=torch.float64)
    least, most = sde.log_snr(ends)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(200))
    lam = least + (most - least) * (nodes + 1) / 2
    errors = torch.stack([error(t) for t in sde.time_from_log_snr(lam)])
    alpha, sigma = sde.marginal(ends)
    prior = torch.distributions.Normal(0 * alpha[0], torch.tensor(sde.prior_std, dtype=torch.float64))
    found = expected(sde, noise_of(law, sde), x0)
    end = torch.distributions.Normal(alpha[0] * x0[:, 0], sigma[0])
    torch.testing.assert_close(found["prior"], torch.distributions.kl_divergence(end, prior), rtol=1e-9, atol=1e-12)
    integral = 0.5 * (most - least) * (weights / 2) @ errors
    torch.testing.assert_close(found["diffusion"], integral, rtol=1e-8, atol=0)
    std = sigma[1] / alpha[1]
    density = 0.5 * error(ends[1]) + std.log() + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(found["reconstruction"], density, rtol=1e-9, atol=0)


@every_process
def test_a_wrong_score_costs_its_denoising_error(name):
    """Over data, the exact prediction is orthogonal to any change delta(x): the bound falls by E|delta|^2 alone.

    delta = 0.3 + 0.2 x / n has E delta^2 from the first two moments of p_t.
    """
    sde, law = PROCESSES[name], smooth()
    x0, weights = data_nodes(law)
    right = noise_of(law, sde)

    def wrong(x, t):
        n = torch.hypot(*sde.marginal(t))
        return right(x, t) + 0.3 + 0.2 * x / match_dims(n, x)

    def extra(t):
        alpha, sigma = sde.marginal(t)
        n = torch.hypot(alpha, sigma)
        first = alpha * law.mean[0] / n
        second = (alpha**2 * (law.covariance[0, 0] + law.mean[0] ** 2) + sigma**2) / n**2
        return 0.09 + 0.12 * first + 0.04 * second

    least, most = sde.log_snr(torch.tensor([sde.T, sde.t_min], dtype=torch.float64))
    u, wu = offset_nodes()
    integral = 0.5 * (most - least) * wu @ extra(sde.time_from_log_snr(most + u * (least - most)))
    loss = integral + 0.5 * extra(torch.tensor(sde.t_min, dtype=torch.float64))
    good, bad = (expected(sde, eps_fn, x0) for eps_fn in (right, wrong))
    fall = weights @ (good["log_prob"] - bad["log_prob"])
    torch.testing.assert_close(fall, loss, rtol=1e-7, atol=0)
    assert torch.equal(good["prior"], bad["prior"])


@pytest.mark.parametrize("samples", [2, 8])
def test_the_expectation_does_not_depend_on_samples(samples):
    sde, law = VPSDE(), smooth()
    x0 = torch.tensor([[-0.4], [0.8]], dtype=torch.float64)
    one, many = (expected(sde, noise_of(law, sde), x0, samples=m) for m in (1, samples))
    for part, value in one.items():
        torch.testing.assert_close(many[part], value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_places_are_evenly_spread(samples):
    """An error that rises linearly from 0 to 1 along lambda: mean 1/2 and variance 1 / (12 M^2) over the offset."""
    sde, n = VESDE(), 50_000 * samples
    least, most = (float(sde.log_snr(torch.tensor(t, dtype=torch.float64))) for t in (sde.T, sde.t_min))

    def eps_fn(x, t):
        return ((most - sde.log_snr(t)) / (most - least)).clamp(min=0).sqrt()[:, None]

    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    zeros = torch.zeros(n, 1, dtype=torch.float64)
    found = elbo(sde, eps_fn, zeros, samples=samples, u=u, eps=zeros.expand(samples + 1, n, 1))
    share = found.diffusion / (0.5 * (most - least))
    assert found.nfe == samples + 1
    assert float(share.mean()) == pytest.approx(0.5, rel=1e-6)
    assert float(share.var()) == pytest.approx(1 / (12 * samples**2), rel=1e-3)


def test_each_place_has_its_own_noise():
    """eps_hat = 0 makes the error |eps_m|^2, and the reconstruction sees the last noise."""
    sde, x0 = VPSDE(), torch.randn(2, 3, dtype=torch.float64)
    eps = torch.randn(5, 2, 3, dtype=torch.float64)
    found = elbo(sde, lambda x, t: 0 * x, x0, samples=4, u=torch.tensor([0.1, 0.7]), eps=eps)
    square = eps.square().sum(2)
    least, most = sde.log_snr(torch.tensor([sde.T, sde.t_min], dtype=torch.float64))
    torch.testing.assert_close(found.diffusion, 0.5 * (most - least) * square[:4].mean(0), rtol=1e-12, atol=0)
    alpha, sigma = sde.marginal(torch.tensor(sde.t_min, dtype=torch.float64))
    normal = 3 * ((sigma / alpha).log() + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(found.reconstruction, 0.5 * square[4] + normal, rtol=1e-9, atol=0)


@pytest.mark.parametrize("bound", [elbo, ddpm_bound])
def test_draws_come_from_the_generator_in_order(bound):
    """Offsets first, then the noise of each place, then that of the reconstruction."""
    law, sde, x0 = mixture((2, 2)), VPSDE(), torch.randn(3, 2, 2, dtype=torch.float64)
    state = torch.get_rng_state()
    drawn = bound(sde, noise_of(law, sde), x0, samples=4, generator=generator(3))
    again = generator(3)
    u = torch.rand(3, generator=again)
    eps = torch.stack([torch.randn(3, 2, 2, generator=again, dtype=torch.float64) for _ in range(5)])
    given = bound(sde, noise_of(law, sde), x0, samples=4, u=u, eps=eps)
    assert all(torch.equal(a, b) for a, b in zip(drawn[:-1], given[:-1], strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert given.nfe == 5


@pytest.mark.parametrize("bound", [elbo, ddpm_bound])
def test_gradient_in_the_data(bound):
    """Against central differences, on shared draws: what trains a dequantiser."""
    law, sde = mixture((3,)), VPSDE()
    x0 = torch.randn(2, 3, dtype=torch.float64).requires_grad_()
    u, eps = torch.rand(2).double(), torch.randn(6, 2, 3, dtype=torch.float64)

    def value(x):
        return bound(sde, noise_of(law, sde), x, samples=5, u=u, eps=eps).log_prob

    (gradient,) = torch.autograd.grad(value(x0).sum(), x0)
    step = 1e-5
    for i in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = step
        difference = (value(x0.detach() + shift) - value(x0.detach() - shift)) / (2 * step)
        torch.testing.assert_close(gradient[:, i], difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bound", [elbo, ddpm_bound])
def test_a_decoder_of_levels_is_used(bound):
    """It is given x0_hat of the last noise, and the kernel's std in data units; its value replaces the density."""
    sde, x0 = VPSDE(), torch.randn(4, 3, dtype=torch.float64)
    law, seen = mixture((3,)), []

    def decoder(mean, std):
        seen.append((mean, std))
        return torch.arange(4.0, dtype=torch.float64)

    u, eps = torch.rand(4), torch.randn(3, 4, 3, dtype=torch.float64)
    eps_fn = noise_of(law, sde)
    plain = bound(sde, eps_fn, x0, samples=2, u=u, eps=eps)
    levels = bound(sde, eps_fn, x0, samples=2, u=u, eps=eps, decoder=decoder)
    first = sde.t_min if bound is elbo else float(ddpm_schedule(sde).times[0])
    alpha, sigma = sde.marginal(torch.tensor(first, dtype=torch.float64))
    x = alpha * x0 + sigma * eps[-1]
    ((mean, std),) = seen
    torch.testing.assert_close(mean, (x + sigma**2 * law.score(x, sde, first)) / alpha, rtol=1e-9, atol=1e-12)
    assert float(std) == pytest.approx(float(sigma / alpha), rel=1e-12)
    assert levels.reconstruction.tolist() == [0, -1, -2, -3]
    assert torch.equal(levels.diffusion, plain.diffusion)
    torch.testing.assert_close(levels.log_prob, -(plain.prior + plain.diffusion) + torch.arange(4.0).double())
    density = torch.distributions.Normal(mean, std).log_prob(x0).sum(1)
    torch.testing.assert_close(plain.reconstruction, -density, rtol=1e-9, atol=1e-12)


# DDPM's bound.


def test_the_chain_is_below_the_sde_and_approaches_it():
    """As N grows by 10, most of the gap that is left is that of the first steps (the module's docstring)."""
    sde, law = VPSDE(), GaussianMixture([1.0], torch.tensor([[0.2]]), std=0.6)
    x0, (h, w) = torch.tensor([[0.5]], dtype=torch.float64), normal_nodes(16)
    continuous = float(expected(sde, noise_of(law, sde), x0)["log_prob"])
    values = []
    for steps in (50, 500):
        eps = h[:, None].expand(steps, 16, 1)
        values.append(float(ddpm_bound(sde, noise_of(law, sde), x0.expand(16, 1), steps=steps, eps=eps).log_prob @ w))
    assert values[0] < values[1] < continuous
    assert continuous - values[1] < 0.5 * (continuous - values[0])


# Errors.


@pytest.mark.parametrize("sde", [SubVPSDE(), VESDE(), EDMSDE()], ids=lambda sde: type(sde).__name__)
def test_processes_without_a_chain(sde):
    with pytest.raises(
        TypeError, match=r"a DDPM chain needs a variance-preserving process .*; got " + type(sde).__name__
    ):
        ddpm_bound(sde, lambda x, t: x, torch.zeros(1, 2))


@pytest.mark.parametrize("samples", [0, -2, 4.0, True])
def test_too_few_samples(samples):
    with pytest.raises(
        ValueError, match=rf"samples is {samples}; the integral needs a whole number of places, at least 1"
    ):
        elbo(VPSDE(), lambda x, t: x, torch.zeros(1, 2), samples=samples)


@pytest.mark.parametrize("samples", [0, 50, 51])
def test_samples_of_a_chain(samples):
    with pytest.raises(ValueError, match=rf"samples is {samples}; give 1 to 49, as a chain of 50 steps has"):
        ddpm_bound(VPSDE(), lambda x, t: x, torch.zeros(1, 2), steps=50, samples=samples)


def test_too_few_steps():
    with pytest.raises(ValueError, match=r"10 steps are too few .*use more than 20 steps"):
        ddpm_bound(VPSDE(), lambda x, t: x, torch.zeros(1, 2), steps=10)


@pytest.mark.parametrize("bound", [elbo, ddpm_bound])
def test_draws_of_another_shape_and_pixels(bound):
    x0 = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"u has shape \(3,\); give one offset for each image, \(2,\)"):
        bound(VPSDE(), lambda x, t: x, x0, samples=4, u=torch.rand(3))
    with pytest.raises(ValueError, match=r"eps has shape \(4, 2, 3\); give \(5, 2, 3\), reconstruction last"):
        bound(VPSDE(), lambda x, t: x, x0, samples=4, eps=torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match=r"x has dtype torch.uint8; .*dequantise"):
        bound(VPSDE(), lambda x, t: x, x0.to(torch.uint8), samples=4, eps=torch.zeros(5, 2, 3))
