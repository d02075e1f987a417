"""The ODE's estimate of a log-probability, where the density of the model is closed form."""

import math

import numpy as np
import oracles
import pytest
import torch
from scipy import stats

from data import Dequantized, Draws, Quantizer, TensorDataset, TruncatedNormalDequantizer, UniformDequantizer
from evaluation import ODEEstimator, Parts, evaluate_likelihood
from sde_lib import SDES, VESDE, VPSDE

SHAPE = (1, 2, 2)
TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def levels(y=None, interval=(-1.0, 1.0)):
    """Nine random images of five levels."""
    x = torch.randint(5, (9, *SHAPE), dtype=torch.uint8, generator=oracles.generator(2))
    return TensorDataset("levels", x, y, quantizer=Quantizer(5, *interval), num_classes=0 if y is None else 3)


def double(dequantizer):
    """The same in float64, so that the solver's tolerance is all there is."""
    return lambda v, u: Dequantized(dequantizer(v, u).x.double(), dequantizer(v, u).log_q)


def with_labels(score_fn):
    return lambda x, t, y: score_fn(x, t)


def nats(report):
    """Log-probabilities of the images."""
    return torch.tensor(report.values, dtype=torch.float64) * -4 * math.log(2)


def noise_of(dequantizer, data, seed, repeat=0):
    """The dequantised images of an evaluation."""
    n = len(data)
    return dequantizer(data.fetch(range(n)).x, Draws(seed, range(n), repeat).uniform("dequantize", data.shape))


def ends(sde):
    """(alpha, sigma) at t_min and at T."""
    return [sde.marginal(torch.tensor(t, dtype=torch.float64)) for t in (sde.t_min, sde.T)]


def flow_law(sde, mean, variance):
    """(mean, deviation) of the density of the ODE's model at t_min: the prior, carried by the linear flow."""
    (alpha, sigma), (alpha_end, sigma_end) = ends(sde)
    ratio = ((alpha**2 * variance + sigma**2) / (alpha_end**2 * variance + sigma_end**2)).sqrt()
    return alpha * mean - ratio * alpha_end * mean, ratio * sde.prior_std


@pytest.mark.parametrize("name", SDES)
def test_dequantised_levels_under_a_gaussian_law(name):
    """Value and code of each image: closed form, with the mismatch of the prior."""
    sde, data = SDES[name](), levels()
    law, mean, variance = oracles.gaussian(SHAPE)
    dequantizer = double(UniformDequantizer(data.quantizer))
    estimator = ODEEstimator(sde, with_labels(law.score_fn(sde)), dequantizer, "exact", options=TIGHT)
    report, codes = evaluate_likelihood(estimator, data, batch_size=4, seed=11, codes=True)
    x, log_q = noise_of(dequantizer, data, 11)
    density = torch.distributions.Normal(*flow_law(sde, mean, variance)).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(nats(report), density - log_q, rtol=0, atol=2e-5)
    expected = oracles.gaussian_flow(sde, x, sde.t_min, sde.T, mean, variance)
    torch.testing.assert_close(torch.from_numpy(codes), expected, rtol=0, atol=1e-4 * sde.prior_std)
    assert report.probe_error is None
    assert report.nfe > 10


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("noise", ["uniform", "truncated", "none"])
def test_a_mixture_in_each_kind_of_dequantisation(name, noise):
    """log p(x) = log p_t_min(x) + log prior(z) - log p_T(z), the code z being the evaluation's own."""
    sde, law = SDES[name](), oracles.mixture(SHAPE)
    (alpha, sigma), _ = ends(sde)
    if noise == "none":
        x, log_q = law.sample(9, generator=oracles.generator(1)), torch.zeros(9)
        data, dequantizer = TensorDataset("points", x), None
        x = x.double()
    else:
        data = levels()
        kinds = {
            "uniform": UniformDequantizer(data.quantizer),
            "truncated": TruncatedNormalDequantizer(data.quantizer, float(alpha), float(sigma)),
        }
        dequantizer = double(kinds[noise])
        x, log_q = noise_of(dequantizer, data, 0)
    estimator = ODEEstimator(sde, with_labels(law.score_fn(sde)), dequantizer, "exact", options=TIGHT)
    report, codes = evaluate_likelihood(estimator, data, batch_size=4, codes=True)
    z = torch.from_numpy(codes).double()
    mismatch = sde.prior_log_prob(z) - law.log_prob(z, sde, sde.T)
    expected = law.log_prob(x, sde, sde.t_min) + mismatch - log_q
    torch.testing.assert_close(nats(report), expected, rtol=0, atol=2e-3 if noise == "none" else 5e-5)


def test_scaling_the_range_of_the_data_changes_nothing():
    """Levels on [-3, 3], the law three times as wide, and a process of three times the noise."""
    values = {}
    for factor in (1.0, 3.0):
        data = levels(interval=(-factor, factor))
        sde = VESDE(0.01 * factor, 50.0 * factor)
        unit, law = VESDE(), oracles.mixture(SHAPE)

        def score_fn(x, t, y, unit=unit, law=law, factor=factor):
            return law.score(x / factor, unit, t) / factor

        dequantizer = double(UniformDequantizer(data.quantizer))
        estimator = ODEEstimator(sde, score_fn, dequantizer, "exact", options=TIGHT)
        values[factor] = evaluate_likelihood(estimator, data)[0].values
    assert values[3.0] == pytest.approx(values[1.0], abs=1e-5)


def test_each_class_has_its_own_density():
    sde = VPSDE()
    classes = torch.arange(9) % 3
    data = levels(classes)
    laws = [oracles.gaussian(SHAPE, seed) for seed in range(3)]
    means, variances = torch.stack([law[1] for law in laws]), torch.stack([law[2] for law in laws])

    def score_fn(x, t, y):
        alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in sde.marginal(t))
        return -(x - alpha * means[y]) / (alpha**2 * variances[y] + sigma**2)

    dequantizer = double(UniformDequantizer(data.quantizer))
    estimator = ODEEstimator(sde, score_fn, dequantizer, "exact", options=TIGHT)
    report, _ = evaluate_likelihood(estimator, data, batch_size=4)
    x, log_q = noise_of(dequantizer, data, 0)
    law = torch.distributions.Normal(*flow_law(sde, means[classes], variances[classes]))
    torch.testing.assert_close(nats(report), law.log_prob(x).flatten(1).sum(1) - log_q, rtol=0, atol=2e-5)


# Probes: in a linear flow their noise is closed form.


def test_gaussian_probes_are_those_of_the_image():
    """For an isotropic law every probe v errs by I (|v|^2 / D - 1), I being what the divergence adds to log p."""
    sde, data, std, probes = VPSDE(), levels(), 0.5, 3
    (alpha, sigma), (alpha_end, sigma_end) = ends(sde)
    grown = ((alpha_end**2 * std**2 + sigma_end**2) / (alpha**2 * std**2 + sigma**2)).sqrt()
    whole = 4 * float((grown * alpha / alpha_end).log())

    def score_fn(x, t, y):
        a, s = (value.reshape(-1, 1, 1, 1) for value in sde.marginal(t))
        return -x / (a**2 * std**2 + s**2)

    dequantizer = double(UniformDequantizer(data.quantizer))
    estimator = ODEEstimator(sde, score_fn, dequantizer, probes=probes, noise="gaussian", options=TIGHT)
    report, _ = evaluate_likelihood(estimator, data, batch_size=4, seed=3)
    x, log_q = noise_of(dequantizer, data, 3)
    law = torch.distributions.Normal(*flow_law(sde, torch.tensor(0.0), torch.tensor(std**2)))
    drawn = Draws(3, range(9)).normal("probes", (probes, *SHAPE)).double().flatten(2).square().sum(2) / 4
    expected = law.log_prob(x).flatten(1).sum(1) - log_q + whole * (drawn.mean(1) - 1)
    torch.testing.assert_close(nats(report), expected, rtol=0, atol=1e-4)
    by_hand = (whole**2 * drawn.var(1) / probes).sum().sqrt() / 9 / (4 * math.log(2))
    assert report.probe_error == pytest.approx(float(by_hand), rel=1e-4)


def test_the_noise_of_the_probes_cancels_in_the_importance_weights():
    """Here it depends on the probes alone, which the repeats share: the bound moves by just that noise."""
    sde, data, std = VPSDE(), levels(), 0.5

    def score_fn(x, t, y):
        a, s = (value.reshape(-1, 1, 1, 1) for value in sde.marginal(t))
        return -x / (a**2 * std**2 + s**2)

    def gaps(**settings):
        estimator = ODEEstimator(sde, score_fn, double(UniformDequantizer(data.quantizer)), **settings, options=TIGHT)
        report, _ = evaluate_likelihood(estimator, data, repeats=4, weighted=True, seed=5)
        return report.repeat_error, np.subtract(report.values, report.importance_weighted_values)

    (error, expected), (noisy_error, noisy) = gaps(divergence="exact"), gaps(noise="gaussian")
    assert expected.min() > 1e-4
    np.testing.assert_allclose(noisy, expected, rtol=0, atol=1e-5)
    assert noisy_error == pytest.approx(error, rel=1e-4)


def test_rademacher_probes_are_those_of_the_image():
    """In two correlated dimensions a probe of signs errs by v_1 v_2 times one and the same number."""
    sde, covariance = VPSDE(), torch.tensor([[0.5, 0.4], [0.4, 0.6]], dtype=torch.float64)
    law = oracles.GaussianMixture([1.0], torch.zeros(1, 2), covariance)
    data = TensorDataset("points", law.sample(60, generator=oracles.generator(1), dtype=torch.float32))
    score_fn = with_labels(law.score_fn(sde))

    def value(**settings):
        estimator = ODEEstimator(sde, score_fn, None, options={"rtol": 1e-5, "atol": 1e-5}, **settings)
        return np.array(evaluate_likelihood(estimator, data, seed=4)[0].values)

    signs = Draws(4, range(60)).each("probes", lambda stream: torch.randint(0, 2, (1, 2), generator=stream))
    product = (2.0 * signs - 1).flatten(1).prod(1).numpy()
    assert 15 < (product > 0).sum() < 45
    errors = (value() - value(divergence="exact")) * product
    assert abs(errors.mean()) > 0.05
    np.testing.assert_allclose(errors, errors.mean(), rtol=0, atol=2e-4)


# Importance weights


@pytest.mark.parametrize("noise", ["uniform", "truncated"])
def test_weighted_draws_converge_to_the_mass_of_the_cell(noise, tmp_path):
    """One image 256 times, 16 draws of each: P(v) is a product of differences of normal CDFs.

    The weights w / P have mean 1, so E[r - 1 - log r] of r = mean of K weights is the gap of the bound, without the
    noise that cancels in it; it falls as 1 / K.
    """
    sde, image, std = VPSDE(), (0, 1, 2, 1), 0.5
    quantizer = Quantizer(3)
    data = TensorDataset("same", torch.tensor(image, dtype=torch.uint8).expand(256, 4).clone(), quantizer=quantizer)
    dequantizer = {
        "uniform": UniformDequantizer(quantizer),
        "truncated": TruncatedNormalDequantizer(quantizer, 1.0, 0.5 / 1.2),
    }[noise]

    def score_fn(x, t, y):
        alpha, sigma = (value.reshape(-1, 1) for value in sde.marginal(t))
        return -(x - alpha * 0.1) / (alpha**2 * std**2 + sigma**2)

    estimator = ODEEstimator(sde, score_fn, dequantizer, "exact", options={"rtol": 3e-4, "atol": 3e-4})
    parts = Parts(tmp_path)
    report, _ = evaluate_likelihood(estimator, data, repeats=16, weighted=True, parts=parts)
    rows = parts.load()["log_prob"]

    law = stats.norm(*(float(v) for v in flow_law(sde, torch.tensor(0.1), torch.tensor(std**2))))
    edges = [-1, -1 / 3, 1 / 3, 1] if noise == "uniform" else [-1.5, -0.5, 0.5, 1.5]
    mass = sum(math.log(law.cdf(edges[v + 1]) - law.cdf(edges[v])) for v in image)

    unit = 4 * math.log(2)
    by_hand = [-math.log(sum(math.exp(value) for value in row) / 16) / unit for row in rows]
    assert report.importance_weighted_values == pytest.approx(by_hand, rel=1e-12)
    assert report.values == pytest.approx((-rows.mean(1) / unit).tolist(), rel=1e-12)
    assert all(a <= b + 1e-12 for a, b in zip(report.importance_weighted_values, report.values, strict=True))

    weights = np.exp(rows - mass)
    assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(weights.size)
    counts, gaps = (1, 2, 4, 8, 16), []
    for k in counts:
        r = weights.reshape(256, -1, k).mean(2)
        gaps.append((r - 1 - np.log(r)).mean())
    expected = weights.var() / 2 / np.array(counts)  # to leading order
    assert gaps[0] > 0.1
    assert gaps[-1] == pytest.approx(expected[-1], rel=0.2)
    assert oracles.slope(counts[2:], gaps[2:]) == pytest.approx(-1, abs=0.15)
    bound = report.importance_weighted, report.importance_weighted_error
    assert abs(bound[0] + (mass - gaps[-1]) / unit) < 4 * bound[1]
