"""The exact oracle against torch.distributions, autograd and its own samples; the test of laws against wrong laws."""

import math
import re

import pytest
import torch
from oracles import (
    PROCESSES,
    assert_law,
    gaussian,
    gaussian_flow,
    generator,
    law_deviations,
    mixture,
    mixture_2d,
    mixture_image,
)
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sde_lib import VPSDE, GaussianMixture, integrate

SHAPES = [(1,), (2,), (3, 2, 2), (3, 4, 4)]
TIMES = [1e-5, 0.05, 0.4, 1.0]
every_process = pytest.mark.parametrize("name", PROCESSES)


def correlated(k, d, seed=0):
    """Weights, means and covariances of our own, so that nothing is read back from the class."""
    draw = generator(seed)
    weights = torch.rand(k, generator=draw, dtype=torch.float64) + 0.1
    means = torch.randn(k, d, generator=draw, dtype=torch.float64)
    factors = torch.randn(k, d, d + 2, generator=draw, dtype=torch.float64)
    return weights, means, factors @ factors.mT / d


# Density and score.


@every_process
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("time", TIMES)
def test_density_is_that_of_torch_distributions(name, shape, time):
    sde, d = PROCESSES[name], math.prod(shape)
    weights, means, covariances = correlated(3, d)
    law = GaussianMixture(weights, means.reshape(3, *shape), covariances)
    alpha, sigma = sde.marginal(torch.tensor(time, dtype=torch.float64))
    p_t = MixtureSameFamily(
        Categorical(weights / weights.sum()),
        MultivariateNormal(alpha * means, alpha**2 * covariances + sigma**2 * torch.eye(d, dtype=torch.float64)),
    )
    x = p_t.sample((7,)).reshape(7, *shape)
    assert torch.allclose(law.log_prob(x, sde, time), p_t.log_prob(x.flatten(1)), rtol=1e-9, atol=1e-9)
    assert torch.allclose(law.marginal(sde, time).log_prob(x), p_t.log_prob(x.flatten(1)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_density_of_the_data(shape):
    d = math.prod(shape)
    weights, means, covariances = correlated(2, d, seed=1)
    law = GaussianMixture(weights, means.reshape(2, *shape), covariances)
    data = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))
    x = data.sample((9,))
    assert torch.allclose(law.log_prob(x.reshape(9, *shape)), data.log_prob(x), rtol=1e-9, atol=1e-9)


@every_process
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("time", TIMES)
def test_score_is_the_gradient(name, shape, time):
    sde, law = PROCESSES[name], mixture(shape)
    x = law.marginal(sde, time).sample(6, generator=generator(1), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x, sde, time).sum(), x)
    assert torch.allclose(law.score(x, sde, time), gradient, rtol=1e-9, atol=1e-9)
    assert torch.equal(law.score_fn(sde)(x, torch.full((6,), time)), law.score(x, sde, torch.full((6,), time)))


def test_score_of_the_data():
    law = mixture((3, 2, 2))
    x = law.sample(5, generator=generator(2), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    assert torch.allclose(law.score(x), gradient, rtol=1e-9, atol=1e-9)


@every_process
def test_score_is_itself_differentiable(name):
    """Its Jacobian is the Hessian of log p, symmetric."""
    sde, law = PROCESSES[name], mixture((4,))
    x = torch.randn(4, generator=generator(3), dtype=torch.float64) * 0.3
    jacobian = torch.autograd.functional.jacobian(lambda v: law.score(v[None], sde, 0.2)[0], x)
    hessian = torch.autograd.functional.hessian(lambda v: law.log_prob(v[None], sde, 0.2)[0], x)
    assert torch.allclose(jacobian, hessian, rtol=1e-9, atol=1e-9)
    assert torch.allclose(jacobian, jacobian.T, rtol=1e-9, atol=1e-9)


@every_process
def test_each_sample_has_its_own_time(name):
    sde, law = PROCESSES[name], mixture((3, 2, 2))
    t = torch.tensor(TIMES, dtype=torch.float64)
    x = torch.randn(4, 3, 2, 2, generator=generator(4), dtype=torch.float64)
    for i in range(4):
        one = (x[i : i + 1], sde, TIMES[i])
        assert torch.allclose(law.log_prob(x, sde, t)[i], law.log_prob(*one)[0], rtol=1e-12)
        assert torch.allclose(law.score(x, sde, t)[i], law.score(*one)[0], rtol=1e-12)
        assert torch.allclose(law.responsibilities(x, sde, t)[i], law.responsibilities(*one)[0], rtol=1e-9)


@every_process
def test_responsibilities_are_bayes_rule(name):
    sde, law = PROCESSES[name], mixture_2d()
    x = torch.randn(6, 2, generator=generator(5), dtype=torch.float64)
    later = law.marginal(sde, 0.1)
    joint = torch.stack(
        [law.weights[k] * MultivariateNormal(later.means[k], later.covariances[k]).log_prob(x).exp() for k in range(2)],
        1,
    )
    shares = law.responsibilities(x, sde, 0.1)
    assert torch.allclose(shares, joint / joint.sum(1, keepdim=True), rtol=1e-7, atol=1e-12)
    assert torch.allclose(shares.sum(1), torch.ones(6, dtype=torch.float64))


@every_process
def test_tweedie_s_formula(name):
    """E[x0 | x_t] from the score equals the posterior mean by numerical integration over x0, in one dimension."""
    sde, time = PROCESSES[name], 0.3
    law = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0], [0.6]]), std=torch.tensor([0.3, 0.5]))
    alpha, sigma = (float(v) for v in sde.marginal(torch.tensor(time, dtype=torch.float64)))
    x0 = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    weight = (law.log_prob(x0[:, None]) - 0.5 * ((x - alpha * x0) / sigma) ** 2).softmax(1)
    denoised = (x + sigma**2 * law.score(x, sde, time)) / alpha
    assert torch.allclose(denoised[:, 0], weight @ x0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_x_s_dtype(dtype):
    law, sde = mixture((3, 2, 2)), VPSDE()
    x = law.sample(4, generator=generator(6), dtype=dtype)
    assert x.dtype == dtype
    exact = law.log_prob(x.double(), sde, 0.2)
    for values in (law.log_prob(x, sde, 0.2), law.score(x, sde, 0.2), law.responsibilities(x, sde, 0.2)):
        assert values.dtype == dtype
    assert torch.allclose(law.log_prob(x, sde, 0.2).double(), exact, rtol=1e-5, atol=1e-4)


# Samples and moments.


@pytest.mark.parametrize("shape", [*SHAPES, (3, 8, 8)])
def test_samples_have_the_law(shape):
    law = mixture(shape)
    x = law.sample(8000, generator=generator(7))
    assert x.shape == (8000, *shape)
    assert x.dtype == torch.float32
    assert_law(x, law)


def test_samples_come_from_the_generator_alone():
    law, state = mixture_2d(), torch.get_rng_state()
    x = law.sample(50, generator=generator(8))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, law.sample(50, generator=generator(8)))
    assert not torch.equal(x, law.sample(50, generator=generator(9)))


def test_moments_are_those_of_the_definition():
    """By numerical integration of the density in the plane."""
    weights, means, covariances = correlated(3, 2, seed=2)
    law = GaussianMixture(weights, means, covariances)
    axis = torch.linspace(-14, 14, 701, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    mass = law.log_prob(x).exp() * float(axis[1] - axis[0]) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=1e-9)
    mean = mass @ x
    assert torch.allclose(law.mean, mean, atol=1e-8)
    assert torch.allclose(law.covariance, (x - mean).T @ ((x - mean) * mass[:, None]), atol=1e-7)


def test_components_are_kept():
    weights, means, covariances = correlated(3, 4, seed=3)
    law = GaussianMixture(weights, means.reshape(3, 2, 2), covariances)
    assert torch.allclose(law.weights, weights / weights.sum(), rtol=1e-15)
    assert torch.allclose(law.covariances, covariances, rtol=0, atol=1e-13)
    assert law.shape == tuple(law.mean.shape) == (2, 2)
    assert torch.allclose(law.mean.flatten(), weights @ means / weights.sum())


@every_process
def test_marginal_of_a_marginal_is_the_transition(name):
    """Component by component: ratio C_s ratio + std^2 = C_t."""
    sde, law = PROCESSES[name], mixture((2, 2))
    s, t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    ratio, std = sde.transition(s, t)
    early, late = law.marginal(sde, 0.2), law.marginal(sde, 0.7)
    assert late.shape == law.shape
    assert torch.allclose(late.means, ratio * early.means, rtol=1e-12)
    grown = ratio**2 * early.covariances + std**2 * torch.eye(4, dtype=torch.float64)
    assert torch.allclose(late.covariances, grown, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_closed_flow_solves_the_ode(name):
    """``oracles.gaussian_flow`` against the probability-flow ODE of the oracle's score, there and back."""
    sde = PROCESSES[name]
    law, mean, variance = gaussian((2, 2))
    flow = sde.reverse(law.score_fn(sde), probability_flow=True)
    x = law.sample(3, generator=generator(10), dtype=torch.float64)
    z = integrate(lambda t, x: flow.sde(x, t)[0], x, 0.05, 0.9, rtol=1e-8, atol=1e-8, breakpoints=sde.breakpoints).x
    assert torch.allclose(z, gaussian_flow(sde, x, 0.05, 0.9, mean, variance), rtol=1e-6, atol=1e-6)
    assert torch.allclose(gaussian_flow(sde, z, 0.9, 0.05, mean, variance), x, rtol=1e-5, atol=1e-5)


# Forms of the arguments.


@pytest.mark.parametrize("std", [0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5])])
def test_isotropic_forms_agree(std):
    means = torch.tensor([[[0.0, 1.0], [2.0, -1.0]], [[1.0, 1.0], [0.0, 0.5]]])
    isotropic = GaussianMixture([1, 3], means, std=std)
    x = torch.randn(5, 2, 2, dtype=torch.float64)
    for covariances in (0.25 * torch.eye(4), 0.25 * torch.eye(4).expand(2, 4, 4)):
        full = GaussianMixture(torch.tensor([0.25, 0.75]), means, covariances)
        assert torch.allclose(isotropic.log_prob(x), full.log_prob(x), rtol=1e-12)
        assert torch.allclose(isotropic.score(x), full.score(x), rtol=1e-12)
        assert torch.allclose(isotropic.covariance, full.covariance, rtol=1e-12)


def test_each_component_has_its_std():
    law = GaussianMixture([0.5, 0.5], torch.zeros(2, 3), std=torch.tensor([1.0, 2.0]))
    assert torch.allclose(law.covariances[0], torch.eye(3).double())
    assert torch.allclose(law.covariances[1], 4 * torch.eye(3).double())


def test_one_covariance_serves_all_components():
    weights, means, covariances = correlated(3, 4, seed=4)
    shared = GaussianMixture(weights, means, covariances[0])
    each = GaussianMixture(weights, means, covariances[:1].expand(3, 4, 4))
    x = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(shared.log_prob(x), each.log_prob(x))


# Errors.


@pytest.mark.parametrize(
    ("weights", "means", "given"),
    [
        ([1.0], torch.zeros(2, 3), "weights (1,) and means (2, 3)"),
        ([[1.0]], torch.zeros(1, 3), "weights (1, 1) and means (1, 3)"),
        ([1.0], torch.zeros(1), "weights (1,) and means (1,)"),
    ],
)
def test_shapes_of_weights_and_means(weights, means, given):
    with pytest.raises(ValueError, match=re.escape(f"{given}: give (K,) and (K, *)")):
        GaussianMixture(weights, means, std=1.0)


@pytest.mark.parametrize("weights", [[0.0, 1.0], [-1.0, 2.0], [math.nan, 1.0]])
def test_weights_must_be_positive(weights):
    with pytest.raises(ValueError, match=r"weights \[.*\] must all be above 0"):
        GaussianMixture(weights, torch.zeros(2, 3), std=1.0)


@pytest.mark.parametrize("spread", [{}, {"covariances": torch.eye(3), "std": 1.0}])
def test_one_kind_of_spread_is_given(spread):
    with pytest.raises(ValueError, match="give either covariances or std"):
        GaussianMixture([1.0], torch.zeros(1, 3), **spread)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (3, 3, 3), (1, 3, 3), (2, 2, 3, 3)])
def test_shapes_of_covariances(shape):
    message = re.escape(f"covariances {shape}: give (2, 3, 3) or (3, 3)")
    with pytest.raises(ValueError, match=message):
        GaussianMixture([1.0, 1.0], torch.zeros(2, 3), torch.ones(shape))


@pytest.mark.parametrize(
    "spread",
    [{"covariances": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}, {"covariances": torch.zeros(2, 2)}, {"std": 0.0}],
)
def test_covariances_must_be_positive_definite(spread):
    with pytest.raises(ValueError, match="a covariance is not positive definite"):
        GaussianMixture([1.0], torch.zeros(1, 2), **spread)


def test_std_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"std \(3,\): give a number or \(2,\)"):
        GaussianMixture([1.0, 1.0], torch.zeros(2, 2), std=torch.ones(3))


@pytest.mark.parametrize("shape", [(5, 2), (5, 12), (5, 3, 2), (3, 2, 2)])
def test_x_of_another_shape_is_refused(shape):
    message = re.escape(f"x has shape {shape}; this mixture lives on (B, 3, 2, 2)")
    law = mixture((3, 2, 2))
    for call in (law.log_prob, law.score, law.responsibilities):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape))


def test_times_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"time has shape \(3,\); give \(\) or \(B,\) with B = 4"):
        mixture_2d().score(torch.zeros(4, 2), VPSDE(), torch.zeros(3))


# The test of laws itself.


def one_gaussian(x, law):
    """The Gaussian of the same mean and covariance."""
    flat = law.mean.flatten()
    noise = torch.randn(x.flatten(1).shape, generator=generator(1), dtype=torch.float64)
    return (flat + noise @ torch.linalg.cholesky(law.covariance).T).reshape(x.shape)


@pytest.mark.parametrize("law", [mixture_2d(), mixture_image()], ids=["plane", "image"])
def test_the_standard_mixtures_are_correlated_and_unequal(law):
    assert law.weights.tolist() == pytest.approx([0.35, 0.65])
    for covariance in law.covariances:
        scale = covariance.diagonal().sqrt()
        correlation = covariance / scale / scale[:, None] - torch.eye(len(scale), dtype=torch.float64)
        assert correlation.abs().max() > 0.2
    assert 0.3 < float(law.covariance.diagonal().mean().sqrt()) < 1


def test_deviations_of_right_samples_are_those_of_one_normal():
    """In 200 repetitions each exceeds 1 at most as often as |N(0, 1)| does, 32 %, and the exact ones not much less."""
    law, draw = mixture_2d(), generator(11)
    repeats = [law_deviations(law.sample(2000, generator=draw, dtype=torch.float64), law) for _ in range(200)]
    for name in ("mean", "covariance", "energy", "weights"):
        values = torch.tensor([deviation[name] for deviation in repeats])
        often = float((values > 1).double().mean())
        assert often < 0.3173 + 4 * math.sqrt(0.32 * 0.68 / 200)
        assert values.max() < 4
        if name in ("mean", "covariance"):
            assert often > 0.1


@pytest.mark.parametrize("law", [mixture_2d(), mixture_image()], ids=["plane", "image"])
@pytest.mark.parametrize(
    ("wrong", "family"),
    [
        (lambda x, law: x + 0.1 * law.covariance.diagonal().sqrt().reshape(law.shape), "mean"),
        (lambda x, law: law.mean + 1.08 * (x - law.mean), "energy"),
        (lambda x, law: law.mean + 1.15 * (x - law.mean), "covariance"),
        (one_gaussian, "energy"),
        (lambda x, law: x[law.responsibilities(x)[:, 0].argsort()[: 4 * len(x) // 5]], "weights"),
    ],
    ids=["shifted", "slightly wide", "wide", "one gaussian", "one mode lost in part"],
)
def test_wrong_laws_are_seen(law, wrong, family):
    x = law.sample(4000, generator=generator(12), dtype=torch.float64)
    assert_law(x, law)
    deviations = law_deviations(wrong(x, law), law)
    assert deviations[family] > 4
    with pytest.raises(AssertionError, match=f"off by more than 4.0 sigmas.*{family}"):
        assert_law(wrong(x, law), law)
