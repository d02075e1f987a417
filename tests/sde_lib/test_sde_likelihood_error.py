"""Errors that are stated: standard errors over probes and over images cover the truth as often as they should."""

import math

import pytest
import torch
from oracles import PROCESSES, generator, mixture, mixture_2d
from scipy import stats

from sde_lib import VESDE, VPSDE, GaussianMixture, log_likelihood
from sde_lib.divergence import PROBE_NOISES, draw_probes

every_process = pytest.mark.parametrize("name", PROCESSES)
REPETITIONS = 400


def data(sde, law, n=4, seed=1):
    """Samples of p_{t_min}, which is where the flow starts."""
    return law.marginal(sde, sde.t_min).sample(n, generator=generator(seed), dtype=torch.float64)


def assert_covers(error, stated):
    """|error| < 1.96 stated in 95 +- 3 % of the repetitions (each (400,)).

    Of 400 repetitions a true 95 % interval covers a number of standard deviation sqrt(0.05 * 0.95 / 400) = 1.1 %, so
    3 % are 2.75 of them. A standard error wrong by a quarter covers 86 % or 98.6 %, and is found.
    """
    assert error.shape == stated.shape == (REPETITIONS,)
    covered = float((error.abs() < 1.96 * stated).double().mean())
    print(f"covered {100 * covered:.1f} %, mean of error / stated {float((error / stated).mean()):.3f}")
    assert 0.92 <= covered <= 0.98


def mean_log_density(sde, law, t, of):
    """E over p_t of a function of x (n, 2), by a fine rectangle rule, which is exact to rounding for smooth laws."""
    marginal = law.marginal(sde, t)
    reach = float(marginal.means.abs().max() + 9 * marginal.eigenvalues.max().sqrt())
    axis = torch.linspace(-reach, reach, 501, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    mass = marginal.log_prob(x).exp() * (axis[1] - axis[0]) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=1e-10)
    return float(mass @ of(x))


def test_standard_error_over_images_covers():
    """400 data sets of 100 fresh images, in one batch. The truth is the model's mean log density over p_{t_min}.

    That is minus the entropy of p_{t_min} plus the mean mismatch of the prior over p_T, both by quadrature.
    """
    sde, law, images = VESDE(), mixture_2d(), 100
    entropy = -mean_log_density(sde, law, sde.t_min, lambda x: law.log_prob(x, sde, sde.t_min))
    mismatch = mean_log_density(sde, law, sde.T, lambda x: sde.prior_log_prob(x) - law.log_prob(x, sde, sde.T))
    x = data(sde, law, n=REPETITIONS * images, seed=11)
    result = log_likelihood(sde, law.score_fn(sde), x, divergence="exact", rtol=1e-4, atol=1e-4)
    values = result.log_prob.reshape(REPETITIONS, images)
    assert_covers(values.mean(1) - (mismatch - entropy), values.std(1) / math.sqrt(images))


@pytest.mark.parametrize("noise", PROBE_NOISES)
def test_standard_error_over_probes_covers(noise):
    """400 times the same 8 images, each image with 8 fresh probes: the mean over images against exact divergence."""
    sde, law, images = VPSDE(), mixture((3, 2)), 8
    x = data(sde, law, n=images)
    options = {"rtol": 1e-4, "atol": 1e-4}
    exact = log_likelihood(sde, law.score_fn(sde), x, divergence="exact", **options).log_prob.mean()
    copies = x.repeat(REPETITIONS, 1, 1)
    result = log_likelihood(sde, law.score_fn(sde), copies, probes=8, noise=noise, generator=generator(12), **options)
    error = result.log_prob.reshape(REPETITIONS, images).mean(1) - exact
    stated = result.std_error.reshape(REPETITIONS, images).square().sum(1).sqrt() / images
    assert_covers(error, stated)


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


def test_given_probes_take_the_place_of_drawn_ones():
    sde, law = VPSDE(), mixture((3, 2))
    x = data(sde, law)
    probes = draw_probes(x, 5, "gaussian", generator(4))
    drawn = log_likelihood(sde, law.score_fn(sde), x, probes=5, noise="gaussian", generator=generator(4))
    given = log_likelihood(sde, law.score_fn(sde), x, probes=probes)
    assert torch.equal(given.log_prob, drawn.log_prob)
    assert torch.equal(given.std_error, drawn.std_error)


def test_probes_are_columns_of_their_own():
    """In fixed steps: K probes are the K runs with one, their mean and the standard error of it."""
    sde, law = VPSDE(), mixture((3, 2))
    x = data(sde, law)
    probes = draw_probes(x, 5, "rademacher", generator(4))

    def run(some):
        return log_likelihood(sde, law.score_fn(sde), x, probes=some, method="rk4", steps=20)

    each = torch.stack([run(probe[None]).log_prob for probe in probes])
    together = run(probes)
    torch.testing.assert_close(together.log_prob, each.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together.std_error, each.std(0) / math.sqrt(5), rtol=1e-9, atol=1e-12)
    assert run(probes[:1]).std_error is None
