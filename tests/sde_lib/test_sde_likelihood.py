"""Likelihood: exact answers for mixtures, unbiased estimates of the divergence, and what is counted and refused."""

import math

import pytest
import torch
from oracles import PROCESSES, gaussian, gaussian_flow, generator, mixture, mixture_2d, slope
from scipy import stats

from sde_lib import METHODS, SDES, VPSDE, GaussianMixture, IntegrationError, bits_per_dim, log_likelihood
from sde_lib.divergence import PROBE_NOISES, ExactDivergence, HutchinsonDivergence, draw_probes
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


@every_process
@pytest.mark.parametrize(
    ("shape", "tol", "bound"), [*((shape, 1e-5, 1e-4) for shape in SHAPES), ((3, 2, 2), 1e-7, 1e-6)]
)
def test_log_prob_is_exact(name, shape, tol, bound):
    sde, law = PROCESSES[name], law_on(shape)
    x = data(sde, law)
    default = {} if tol == 1e-5 else {"rtol": tol, "atol": tol}
    result = log_likelihood(sde, law.score_fn(sde), x, divergence="exact", **default)
    exact, mismatch = exact_log_prob(sde, law, x, result.z)
    print(f"{name} {shape} {tol}: log p {law.log_prob(x, sde, sde.t_min).tolist()} nats, mismatch {mismatch.tolist()}")
    assert bits(result.log_prob - exact, shape).abs().max() < bound
    assert result.z.shape == x.shape
    assert result.log_prob.shape == (len(x),)
    assert result.std_error is None


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


# Divergence.


class LinearScore:
    """s = -x A^T + b with a full, asymmetric A: its divergence is -trace A wherever x is."""

    def __init__(self, d, seed=0):
        self.matrix = torch.randn(d, d, generator=generator(seed), dtype=torch.float64)

    def __call__(self, x, t):
        return (-x.flatten(1) @ self.matrix.T + 1).reshape(x.shape)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 4, 4), (63,), (64,), (65,), (3, 8, 8)])
def test_exact_divergence_is_the_trace(shape):
    """Also across the blocks of 64 products."""
    d = math.prod(shape)
    score = LinearScore(d)
    x = torch.randn(3, *shape, dtype=torch.float64)
    value, divergence = ExactDivergence()(lambda x, t: torch.tanh(score(x, t)), x, torch.zeros(3))
    assert torch.equal(value, torch.tanh(score(x, None)))
    slopes = 1 - torch.tanh(score(x, None)).flatten(1) ** 2
    assert divergence.shape == (3, 1)
    assert torch.allclose(divergence[:, 0], -(slopes * score.matrix.diagonal()).sum(1), rtol=1e-10)


@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_blocks_do_not_matter(block):
    law, sde = mixture((3, 2, 2)), VPSDE()
    x = data(sde, law)
    t = torch.full((4,), 0.2, dtype=torch.float64)
    _, whole = ExactDivergence()(law.score_fn(sde), x, t)
    _, parts = ExactDivergence(block)(law.score_fn(sde), x, t)
    assert torch.allclose(parts, whole, rtol=1e-12)


# Var of v^T A v, with S = (A + A^T) / 2: arXiv 1810.01367 and Avron and Toledo 2011.
VARIANCES = {
    "rademacher": lambda s: 2 * ((s**2).sum() - (s.diagonal() ** 2).sum()),
    "gaussian": lambda s: 2 * (s**2).sum(),
}


@pytest.mark.parametrize("noise", PROBE_NOISES)
def test_hutchinson_has_its_mean_and_variance(noise):
    score, k = LinearScore(6), 20_000
    x = torch.zeros(k, 6, dtype=torch.float64)  # one estimate for each row
    probes = draw_probes(x, 2, noise, generator(3))
    assert probes.shape == (2, k, 6)
    value, estimates = HutchinsonDivergence(probes)(score, x, torch.zeros(k))
    assert torch.equal(value, score(x, None))
    assert estimates.shape == (k, 2)
    estimates = estimates.flatten()
    symmetric = (score.matrix + score.matrix.T) / 2
    variance = VARIANCES[noise](symmetric)
    n = len(estimates)
    assert abs(estimates.mean() + score.matrix.trace()) < 4 * (variance / n).sqrt()
    fourth = ((estimates - estimates.mean()) ** 4).mean()
    assert abs(estimates.var() - variance) < 4 * ((fourth - variance**2) / n).sqrt()


@pytest.mark.parametrize("noise", PROBE_NOISES)
def test_probes_have_zero_mean_and_unit_covariance(noise):
    x = torch.zeros(1, 3, dtype=torch.float32)
    probes = draw_probes(x, 40_000, noise, generator(4))[:, 0]
    assert probes.dtype == torch.float32
    assert probes.mean(0).abs().max() < 4 / math.sqrt(40_000)
    assert (probes.T @ probes / 40_000 - torch.eye(3)).abs().max() < 4 * math.sqrt(2 / 40_000)
    if noise == "rademacher":
        assert set(probes.unique().tolist()) == {-1.0, 1.0}
    else:
        assert stats.kstest(probes.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("noise", PROBE_NOISES)
def test_log_prob_is_unbiased_and_its_std_error_is_true(noise):
    """300 copies of one sample, each with its own 8 probes: errors have mean 0 and the variance that is stated."""
    sde, law, copies = VPSDE(), mixture((3, 2)), 300
    x = data(sde, law, n=1).expand(copies, 3, 2)
    exact = log_likelihood(sde, law.score_fn(sde), x[:1], divergence="exact").log_prob
    result = log_likelihood(sde, law.score_fn(sde), x, probes=8, noise=noise, generator=generator(5))
    error, stated = result.log_prob - exact, result.std_error
    assert stated.shape == (copies,)
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(copies)
    # both are averages of chi-squares: 300 errors, and 300 variances of 7 degrees each
    assert float(error.square().mean() / stated.square().mean()) == pytest.approx(
        1, abs=4 * math.sqrt(2 / copies + 2 / (7 * copies))
    )
    # a mean of 8 over its own standard error is nearly Student's t of 7 degrees
    assert stats.kstest((error / stated).numpy(), stats.t(7).cdf).pvalue > 1e-3


def test_probes_average_out():
    """Agreement with the exact answer within the stated error, for other samples and many probes."""
    sde, law = VPSDE(), mixture((3, 2))
    x = data(sde, law)
    exact = log_likelihood(sde, law.score_fn(sde), x, divergence="exact").log_prob
    many = log_likelihood(sde, law.score_fn(sde), x, probes=32, generator=generator(6))
    few = log_likelihood(sde, law.score_fn(sde), x, probes=2, generator=generator(7))
    assert ((many.log_prob - exact).abs() < 4 * many.std_error).all()
    assert float((few.std_error / many.std_error).mean()) == pytest.approx(4, rel=0.5)


def test_rademacher_varies_less_than_gaussian():
    """By the diagonal of the Jacobian, which is most of it here."""
    sde, law = VPSDE(), mixture((3, 2))
    x = data(sde, law, n=1).expand(200, 3, 2)
    spread = {
        noise: log_likelihood(sde, law.score_fn(sde), x, noise=noise, generator=generator(8)).log_prob.var()
        for noise in ("rademacher", "gaussian")
    }
    assert spread["rademacher"] < 0.5 * spread["gaussian"]


@every_process
def test_rademacher_is_exact_for_an_isotropic_gaussian(name):
    """v^T (c I) v = c D for signs: the default estimate then has no error at all."""
    sde = PROCESSES[name]
    law = GaussianMixture([1.0], torch.full((1, 3, 2), 0.2), std=0.6)
    x = data(sde, law)

    def result(**options):
        return log_likelihood(sde, law.score_fn(sde), x, rtol=1e-3, atol=1e-3, **options)

    exact = result(divergence="exact").log_prob
    assert torch.allclose(result().log_prob, exact, rtol=0, atol=1e-9)
    assert result(probes=2).std_error.max() < 1e-9
    assert result(probes=2, noise="gaussian").std_error.min() > 1e-3


def test_std_error_is_given_where_there_is_one():
    sde, law = VPSDE(), mixture_2d()
    x = data(sde, law)
    assert log_likelihood(sde, law.score_fn(sde), x).std_error is None
    assert log_likelihood(sde, law.score_fn(sde), x, probes=2).std_error.shape == (4,)
    assert log_likelihood(sde, law.score_fn(sde), x, divergence="exact", probes=5).std_error is None


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


@pytest.mark.parametrize("probes", [0, -1])
def test_at_least_one_probe(probes):
    with pytest.raises(ValueError, match=rf"probes is {probes}; Hutchinson's estimate needs at least 1"):
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
