"""Likelihood: exact answers for mixtures, unbiased estimates of the divergence, and what is counted and refused."""

import math
import re

import pytest
import torch
from oracles import PROCESSES, gaussian, gaussian_flow, generator, mixture, mixture_2d, slope
from scipy import stats

from sde_lib import METHODS, SDES, VESDE, VPSDE, GaussianMixture, IntegrationError, bits_per_dim, log_likelihood
from sde_lib.sde import match_dims

every_process = pytest.mark.parametrize("name", PROCESSES)
SHAPES = [(2,), (3, 2, 2), (3, 4, 4)]


def law_on(shape):
    return mixture_2d() if shape == (2,) else mixture(shape)


def data(sde, law, n=4, seed=1, dtype=torch.float64):
    """Samples of p_{t_min}, which is where the flow starts."""
    return law.marginal(sde, sde.t_min).sample(n, generator=generator(seed), dtype=torch.float64).to(dtype)


def bits(nats, shape):
    return nats / (math.prod(shape) * math.log(2))


def exact_log_prob(sde, law, x, z):
    """Log density of the flow that starts from the prior: log p_{t_min}(x) + (log prior(z) - log p_T(z))."""
    mismatch = sde.prior_log_prob(z) - law.log_prob(z, sde, sde.T)
    return law.log_prob(x, sde, sde.t_min) + mismatch, mismatch


# Exact answers.


class ClosedForm:
    """Score and divergence of a mixture, written out: div s = sum_k r_k (|s_k|^2 - tr C_k^-1) - |s|^2.

    It stands in for the 192 products of ``ExactDivergence`` on (3, 8, 8); test_sde_divergence.py compares the two.
    """

    def __init__(self, law, sde):
        self.law, self.sde = law, sde
        self.values, self.vectors = torch.linalg.eigh(law.covariances)

    def __call__(self, score_fn, x, t):
        shares = self.law.responsibilities(x, self.sde, t)
        alpha, sigma = self.sde.marginal(t[0])
        inverses = 1 / (alpha**2 * self.values + sigma**2)
        along = torch.einsum("kij,bki->bkj", self.vectors, x.flatten(1)[:, None] - alpha * self.law.means)
        each = -torch.einsum("kij,bkj->bki", self.vectors, along * inverses)
        score = torch.einsum("bk,bki->bi", shares, each)
        trace = -inverses.sum(1)
        divergence = (shares * (trace + each.square().sum(2))).sum(1) - score.square().sum(1)
        return score.reshape(x.shape), divergence[:, None]


def exact_cases():
    """List of (shape, options, bound in bits/dim) over processes.

    What is hardest is (3, 8, 8): an image whose path runs along the border between the two components meets a short
    peak of the divergence, which a long step samples too sparsely. With log p held 10 times tighter than the state, 1
    image in 60 erred by 1e-4 to 1.4e-4; the default of 20 is for its sake.
    """
    tight = {"rtol": 1e-7, "atol": 1e-7}
    return [
        *((shape, {}, 1e-4) for shape in [*SHAPES, (3, 8, 8)]),
        *((shape, tight, 1e-6) for shape in [(2,), (3, 2, 2), (3, 8, 8)]),
    ]


@every_process
@pytest.mark.parametrize(("shape", "options", "bound"), exact_cases())
def test_log_prob_is_exact(name, shape, options, bound, monkeypatch):
    sde, law = PROCESSES[name], law_on(shape)
    if shape == (3, 8, 8):
        monkeypatch.setattr("sde_lib.likelihood.ExactDivergence", lambda: ClosedForm(law, sde))
    x = data(sde, law)
    result = log_likelihood(sde, law.score_fn(sde), x, divergence="exact", **options)
    exact, mismatch = exact_log_prob(sde, law, x, result.z)
    error = bits(result.log_prob - exact, shape).abs().max()
    print(
        f"{name} {shape} {options}: error {error:.1e}, mismatch {bits(mismatch, shape).abs().max():.1e}, {result.nfe}"
    )
    assert error < bound
    assert result.z.shape == x.shape
    assert result.log_prob.shape == (len(x),)
    assert result.std_error is None


@every_process
def test_any_start(name):
    """t_start: the density of p_t there, and the code that is reached from there."""
    sde, law = PROCESSES[name], law_on((2,))
    x = law.marginal(sde, 0.4).sample(4, generator=generator(1), dtype=torch.float64)
    result = log_likelihood(sde, law.score_fn(sde), x, divergence="exact", t_start=0.4, rtol=1e-7, atol=1e-7)
    exact = law.log_prob(x, sde, 0.4) + sde.prior_log_prob(result.z) - law.log_prob(result.z, sde, sde.T)
    assert bits(result.log_prob - exact, (2,)).abs().max() < 1e-6
    last = log_likelihood(sde, law.score_fn(sde), x, t_start=sde.T)
    torch.testing.assert_close(last.log_prob, sde.prior_log_prob(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(last.z, x, rtol=1e-14, atol=0)
    assert last.nfe == 0


def test_care_tightens_log_prob_alone():
    """On a Gaussian of large D with a loose tolerance of the state, 100 times the care is 100 times less error."""
    law, mean, variance = gaussian((40,))
    sde = VPSDE()
    x = data(sde, law)
    z = gaussian_flow(sde, x, sde.t_min, sde.T, mean, variance)
    truth = law.log_prob(x, sde, sde.t_min) + sde.prior_log_prob(z) - law.log_prob(z, sde, sde.T)
    errors, costs = [], []
    for care in (1.0, 100.0, 10_000.0):
        result = log_likelihood(sde, law.score_fn(sde), x, divergence="exact", rtol=1e-3, atol=1e-3, log_prob_care=care)
        errors.append(float((result.log_prob - truth).abs().max()))
        costs.append(result.nfe)
    print(errors, costs)
    assert errors[2] < 0.1 * errors[1] < 0.01 * errors[0]
    assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_mismatch_of_the_prior_is_small(name, shape):
    """log prior(z) - log p_T(z) in bits/dim, on samples of p_T: what a user's numbers differ from log p_{t_min} by."""
    sde, law = SDES[name](), law_on(shape)
    z = law.marginal(sde, sde.T).sample(500, generator=generator(2), dtype=torch.float64)
    mismatch = bits(sde.prior_log_prob(z) - law.log_prob(z, sde, sde.T), shape)
    assert mismatch.abs().max() < 3e-2
    # its mean over p_T is minus a Kullback-Leibler divergence
    assert mismatch.mean() < 4 * mismatch.std() / math.sqrt(500)


@every_process
def test_float32_is_as_exact_at_the_default_tolerance(name):
    sde, law = PROCESSES[name], law_on((3, 2, 2))
    x = data(sde, law, dtype=torch.float32)
    result = log_likelihood(sde, law.score_fn(sde), x, divergence="exact")
    assert result.log_prob.dtype == result.z.dtype == torch.float32
    exact, _ = exact_log_prob(sde, law, x.double(), result.z.double())
    assert bits(result.log_prob - exact, (3, 2, 2)).abs().max() < 1e-4


@every_process
def test_a_gaussian_in_closed_form(name):
    """z is the closed-form map, and log p the prior's density times the map's determinant."""
    sde = PROCESSES[name]
    law, mean, variance = gaussian((3, 2))
    x = data(sde, law)
    result = log_likelihood(sde, law.score_fn(sde), x, divergence="exact", rtol=1e-7, atol=1e-7)
    z = gaussian_flow(sde, x, sde.t_min, sde.T, mean, variance)
    assert torch.allclose(result.z, z, rtol=1e-5, atol=1e-5)
    (alpha_0, sigma_0), (alpha_1, sigma_1) = (
        sde.marginal(torch.tensor(u, dtype=torch.float64)) for u in (sde.t_min, sde.T)
    )
    stretch = (alpha_1**2 * variance + sigma_1**2) / (alpha_0**2 * variance + sigma_0**2)
    prior = torch.from_numpy(stats.norm(scale=sde.prior_std).logpdf(z.flatten(1).numpy()).sum(1))
    expected = prior + 0.5 * stretch.log().sum()
    assert bits(result.log_prob - expected, (3, 2)).abs().max() < 1e-6


def test_a_density_integrates_to_one():
    """exp(log_prob) over a grid of the plane, for the default process: no constant is lost."""
    sde, law = VPSDE(), mixture_2d()
    axis = torch.linspace(-2.6, 2.6, 53, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    result = log_likelihood(sde, law.score_fn(sde), x, divergence="exact", rtol=1e-4, atol=1e-4)
    assert float(result.log_prob.exp().sum()) * 0.1**2 == pytest.approx(1, abs=1e-3)


def test_a_wrong_score_still_gives_a_density():
    """The formula is exact for the model's own flow, whatever its score: here the score of another law."""
    sde, law, other = VPSDE(), mixture_2d(), GaussianMixture([1.0], torch.tensor([[0.3, -0.4]]), std=0.7)
    x = data(sde, law)
    result = log_likelihood(sde, other.score_fn(sde), x, divergence="exact", rtol=1e-7, atol=1e-7)
    exact, _ = exact_log_prob(sde, other, x, result.z)
    assert bits(result.log_prob - exact, (2,)).abs().max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_solves_it(method):
    sde, law = VPSDE(0.1, 5.0), mixture_2d()
    x = data(sde, law, n=2)
    options = {"steps": 60} if METHODS[method] == "fixed" else {"rtol": 1e-3, "atol": 1e-3}
    result = log_likelihood(sde, law.score_fn(sde), x, divergence="exact", method=method, **options)
    exact, _ = exact_log_prob(sde, law, x, result.z)
    assert bits(result.log_prob - exact, (2,)).abs().max() < (0.2 if method == "euler" else 1e-2)


def test_rk4_converges_at_its_order():
    sde, law = VPSDE(0.1, 5.0), mixture_2d()
    x = data(sde, law, n=2)
    sizes, errors = [20, 40, 80], []
    for steps in sizes:
        result = log_likelihood(sde, law.score_fn(sde), x, divergence="exact", method="rk4", steps=steps)
        errors.append((result.log_prob - exact_log_prob(sde, law, x, result.z)[0]).abs().max())
    assert slope(sizes, errors) == pytest.approx(-4, abs=0.5)


def test_a_sample_s_value_does_not_depend_on_its_batch():
    sde, law = VPSDE(), mixture_2d()
    x = torch.cat([data(sde, law, n=1), 30 * torch.ones(1, 2).double(), torch.zeros(200, 2).double()])
    together = log_likelihood(sde, law.score_fn(sde), x, divergence="exact")
    alone = log_likelihood(sde, law.score_fn(sde), x[:1], divergence="exact")
    assert bits(together.log_prob[:1] - alone.log_prob, (2,)).abs().max() < 1e-4


def test_probes_come_from_the_generator_alone():
    sde, law, state = VPSDE(), mixture((3, 2)), torch.get_rng_state()
    x = data(sde, law)

    def value(seed):
        return log_likelihood(sde, law.score_fn(sde), x, generator=generator(seed)).log_prob

    assert torch.equal(value(1), value(1))
    assert not torch.equal(value(1), value(2))
    assert torch.equal(torch.get_rng_state(), state)


# Costs and side effects.


@pytest.mark.parametrize("options", [{}, {"probes": 3}, {"divergence": "exact"}, {"method": "rk4", "steps": 10}])
def test_nfe_counts_the_calls_of_the_score(options):
    sde, law, times = VPSDE(), mixture_2d(), []
    score_fn = law.score_fn(sde)

    def counted(x, t):
        assert t.shape == (4,)
        times.append(float(t[0]))
        return score_fn(x, t)

    result = log_likelihood(sde, counted, data(sde, law), **options)
    assert result.nfe == len(times)
    assert min(times) == sde.t_min
    assert max(times) == pytest.approx(sde.T, abs=1e-12)
    assert max(times) <= sde.T


def test_x_is_left_as_it_was_and_nothing_is_tracked():
    sde, law = VPSDE(), mixture_2d()
    x = data(sde, law).requires_grad_()
    before = x.detach().clone()
    with torch.no_grad():  # as evaluation code would call it
        result = log_likelihood(sde, law.score_fn(sde), x)
    assert torch.equal(x, before)
    assert x.grad is None
    assert not result.log_prob.requires_grad
    assert not result.z.requires_grad


def test_parameters_of_a_network_collect_no_gradient():
    network = torch.nn.Linear(2, 2).double()
    log_likelihood(VPSDE(), lambda x, t: network(x) * match_dims(t, x), torch.randn(3, 2).double(), divergence="exact")
    assert all(parameter.grad is None for parameter in network.parameters())


# The prior and bits/dim.


@every_process
@pytest.mark.parametrize("shape", [(1,), (3, 4, 4)])
def test_prior_density(name, shape):
    sde = PROCESSES[name]
    z = sde.prior_sample((5, *shape), generator=generator(10), dtype=torch.float64)
    ours = sde.prior_log_prob(z)
    assert ours.shape == (5,)
    theirs = stats.norm(scale=sde.prior_std).logpdf(z.flatten(1).numpy()).sum(1)
    assert torch.allclose(ours, torch.from_numpy(theirs), rtol=1e-12)


@pytest.mark.parametrize("d", [1, 3072])
def test_uniform_noise_of_256_levels_is_8_bits(d):
    """Uniform on [-1, 1]^D has density 2^-D."""
    log_prob = torch.full((3,), -d * math.log(2), dtype=torch.float64)
    assert torch.allclose(bits_per_dim(log_prob, d, 2 / 256), torch.full((3,), 8.0, dtype=torch.float64), rtol=1e-12)
    unit = torch.zeros(3, dtype=torch.float64)  # the same data on [0, 1]
    assert torch.allclose(bits_per_dim(unit, d, 1 / 256), torch.full((3,), 8.0, dtype=torch.float64), rtol=1e-12)


def test_bits_per_dim_by_hand():
    """A log p of -3000 nats on 3072 dimensions of [-1, 1]: (3000 / 3072 - log(2 / 256)) / log 2."""
    expected = (3000 / 3072 + math.log(128)) / math.log(2)
    assert float(bits_per_dim(torch.tensor([-3000.0], dtype=torch.float64), 3072, 2 / 256)) == pytest.approx(
        expected, rel=1e-12
    )
    continuous = bits_per_dim(torch.tensor([-math.log(4)], dtype=torch.float64), 2, 1.0)
    assert float(continuous) == pytest.approx(1.0, rel=1e-12)


def test_bits_per_dim_do_not_depend_on_the_data_s_units():
    """y = c x has log p(y) = log p(x) - D log c, and levels c times as wide."""
    log_prob = torch.tensor([-40.0, 12.0], dtype=torch.float64)
    scaled = bits_per_dim(log_prob - 12 * math.log(3), 12, 3 * 0.1)
    assert torch.allclose(scaled, bits_per_dim(log_prob, 12, 0.1), rtol=1e-12)


# Errors.


@pytest.mark.parametrize(("dims", "width"), [(0, 0.1), (-3, 0.1), (3, 0.0), (3, -1.0), (3, math.nan)])
def test_bits_per_dim_refuses(dims, width):
    with pytest.raises(ValueError, match=rf"dims is {dims} and bin_width {width}; both must be positive"):
        bits_per_dim(torch.zeros(1), dims, width)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_pixels_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"x has dtype {dtype}; give model inputs in floating point \(dequantise"):
        log_likelihood(VPSDE(), mixture_2d().score_fn(VPSDE()), torch.zeros(2, 2, dtype=dtype))


def test_unknown_names():
    score_fn, x = mixture_2d().score_fn(VPSDE()), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="unknown divergence 'skilling'; choose from 'exact', 'hutchinson'"):
        log_likelihood(VPSDE(), score_fn, x, divergence="skilling")
    with pytest.raises(ValueError, match="unknown probe noise 'normal'; choose from 'gaussian', 'rademacher'"):
        log_likelihood(VPSDE(), score_fn, x, noise="normal")
    with pytest.raises(ValueError, match=r"unknown ODE method 'rk45'; choose from .*; did you mean"):
        log_likelihood(VPSDE(), score_fn, x, method="rk45")
    with pytest.raises(ValueError, match=r"method 'rk4' has fixed steps: give steps, at least 1 \(got None\)"):
        log_likelihood(VPSDE(), score_fn, x, method="rk4")


@pytest.mark.parametrize("probes", [0, -1, 2.0, True])
def test_at_least_one_probe(probes):
    with pytest.raises(
        ValueError, match=rf"probes is {probes}; Hutchinson's estimate needs a whole number, at least 1"
    ):
        log_likelihood(VPSDE(), mixture_2d().score_fn(VPSDE()), torch.zeros(2, 2), probes=probes)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_score_without_gradient_is_explained(divergence):
    score_fn = torch.no_grad()(mixture_2d().score_fn(VPSDE()))
    with pytest.raises(ValueError, match=r"the score does not depend on x differentiably \(computed under no_grad\?\)"):
        log_likelihood(VPSDE(), score_fn, torch.zeros(2, 2), divergence=divergence)


def test_a_score_that_is_not_finite_is_explained():
    with pytest.raises(
        IntegrationError, match=r"the drift is not finite at t = 1e-05 \(evaluation 1\): check the score"
    ):
        log_likelihood(VPSDE(), lambda x, t: x / 0, torch.zeros(2, 2))


def test_max_nfe_is_passed_on():
    with pytest.raises(IntegrationError, match="after max_nfe = 20 evaluations"):
        log_likelihood(VPSDE(), mixture_2d().score_fn(VPSDE()), torch.zeros(2, 2), max_nfe=20)


@pytest.mark.parametrize("shape", [(2, 2), (3, 2, 3), (0, 2, 2), (), (1, 3, 2)])
def test_probes_of_another_shape(shape):
    message = rf"probes have shape {re.escape(str(shape))}; give \(K, 2, 2\)"
    with pytest.raises(ValueError, match=message):
        log_likelihood(VPSDE(), mixture_2d().score_fn(VPSDE()), torch.zeros(2, 2), probes=torch.ones(shape))


@pytest.mark.parametrize("name", ["rtol", "atol", "log_prob_care"])
@pytest.mark.parametrize("bad", [0.0, -1e-5, math.nan, math.inf])
def test_tolerances_are_positive(name, bad):
    with pytest.raises(ValueError, match=rf"{name} is {bad}; it must be a finite number above 0"):
        log_likelihood(VPSDE(), mixture_2d().score_fn(VPSDE()), torch.zeros(2, 2), **{name: bad})


@pytest.mark.parametrize("t", [0.0, -0.1, 1.5, math.nan])
def test_starts_outside_the_process(t):
    with pytest.raises(ValueError, match=rf"time {t} is not in \(0, 1\], where the flow runs"):
        log_likelihood(VPSDE(), mixture_2d().score_fn(VPSDE()), torch.zeros(2, 2), t_start=t)


def test_messages_speak_of_time():
    """The VE flow is at u = asinh(sigma) and its score fails from t = 0.6 on; u there is about 1.3.

    Half way in u lies t = 0.729.
    """
    sde, law = VESDE(), mixture_2d()
    exact = law.score_fn(sde)

    def broken(x, t):
        return exact(x, t) * torch.where(t > 0.6, math.nan, 1.0)[:, None]

    with pytest.raises(IntegrationError, match=r"is not finite at t = 0\.(6[0-9]|7)"):
        log_likelihood(sde, broken, torch.zeros(2, 2), method="rk4", steps=100)
    with pytest.raises(IntegrationError, match=r"rk4 is still at t = 0\.729\d* after max_nfe = 200 evaluations"):
        log_likelihood(sde, exact, torch.zeros(2, 2), method="rk4", steps=100, max_nfe=200)
