"""The estimates by bounds, where the exact score makes their expectation closed form."""

import math

import numpy as np
import oracles
import pytest
import torch
from scipy import stats

from data import Draws, Quantizer, TensorDataset, UniformDequantizer
from evaluation import BoundEstimator, evaluate_likelihood
from sde_lib import SDES, VPSDE
from sde_lib.schedule import ddpm_schedule

IMAGE = (0, 3, 1)
COPIES = 3000
MEAN, STD = 0.1, 0.5
PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)


def copies():
    """One image of four levels in three dimensions, many times: each has noise of its own."""
    x = torch.tensor(IMAGE, dtype=torch.uint8).expand(COPIES, 3).clone()
    return TensorDataset("same", x, quantizer=Quantizer(4))


def scales(sde, t, x):
    return tuple(value.reshape(-1, *[1] * (x.ndim - 1)) for value in sde.marginal(t))


def gaussian_eps(sde, mean=MEAN, std=STD):
    """Predicted noise of data N(mean, std^2 I)."""

    def eps_fn(x, t, y):
        alpha, sigma = scales(sde, t, x)
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return eps_fn


def points_eps(sde):
    """Predicted noise of data that are the four points, of PROBABILITIES, independently in each dimension."""
    points = Quantizer(4).encode(torch.arange(4))

    def eps_fn(x, t, y):
        alpha, sigma = scales(sde, t, x)
        distances = (x[..., None] - alpha[..., None] * points) / sigma[..., None]
        shares = (PROBABILITIES.to(x).log() - distances.square() / 2).softmax(-1)
        return (x - alpha * (shares * points).sum(-1)) / sigma

    return eps_fn


class Gaussian:
    """Expectations of the bounds for data N(MEAN, STD^2) and an x0 that is uniform in the bins of IMAGE; nats."""

    def __init__(self, sde):
        self.sde = sde
        centres = -1 + (np.array(IMAGE) + 0.5) / 2
        spread = 0.25 / 12  # variance of a bin of width 1/2
        self.square, self.offset = centres**2 + spread, (centres - MEAN) ** 2 + spread
        self.log_width = 3 * math.log(0.5)  # -log q, of the three bins

    def marginal(self, t):
        return tuple(value.numpy() for value in self.sde.marginal(torch.as_tensor(t, dtype=torch.float64)))

    def error(self, t):
        """E|eps - eps_hat|^2 over all dimensions: eps - eps_hat = (alpha^2 s^2 eps - sigma alpha (x0 - m)) / S^2."""
        alpha, sigma = (np.asarray(value)[..., None] for value in self.marginal(t))
        total = alpha**2 * STD**2 + sigma**2
        return ((alpha**4 * STD**4 + sigma**2 * alpha**2 * self.offset) / total**2).sum(-1)

    def ends(self, first, last):
        """Reconstruction at the first time and divergence from the prior at the last."""
        (a, s), (a_end, s_end) = self.marginal(first), self.marginal(last)
        reconstruction = self.error(first) / 2 + 3 * math.log(math.sqrt(2 * math.pi) * s / a)
        a_end, s_end = a_end / self.sde.prior_std, s_end / self.sde.prior_std
        return reconstruction + (a_end**2 * self.square + s_end**2 - 1 - 2 * np.log(s_end)).sum() / 2

    def elbo(self):
        sde = self.sde
        ends = sde.log_snr(torch.tensor([sde.T, sde.t_min], dtype=torch.float64))
        lam = torch.linspace(*ends.tolist(), 20_001, dtype=torch.float64)
        t = sde.time_from_log_snr(lam).clamp(sde.t_min, sde.T)
        diffusion = np.trapezoid(self.error(t), lam.numpy()) / 2
        return -(diffusion + self.ends(sde.t_min, sde.T)) + self.log_width

    def ddpm(self, steps):
        times = ddpm_schedule(self.sde, steps).times
        snr = np.exp(self.sde.log_snr(times).numpy())
        diffusion = ((snr[:-1] / snr[1:] - 1) * self.error(times[1:])).sum() / 2
        return -(diffusion + self.ends(float(times[0]), float(times[-1]))) + self.log_width

    def truth(self):
        """E log p(x0) - log q."""
        return (-np.log(math.sqrt(2 * math.pi) * STD) - self.offset / STD**2 / 2).sum() + self.log_width


def bits(log_prob):
    return -log_prob / 3 / math.log(2)


def assert_mean(report, expected, error):
    """The mean over the copies lies within 4 of its standard errors, which is as small as asked for."""
    assert report.images == COPIES
    assert report.std_error < error
    assert abs(report.bits_per_dim - expected) < 4 * report.std_error, (report.bits_per_dim, expected, report.std_error)


@pytest.mark.parametrize("name", SDES)
def test_the_elbo_of_dequantised_levels(name):
    sde, data = SDES[name](), copies()
    estimator = BoundEstimator(sde, gaussian_eps(sde), data.quantizer, UniformDequantizer(data.quantizer), samples=48)
    report, _ = evaluate_likelihood(estimator, data, batch_size=1000)
    exact = Gaussian(sde)
    assert_mean(report, bits(exact.elbo()), 0.05)
    assert bits(exact.elbo()) == pytest.approx(bits(exact.truth()), abs=2e-5)  # it is tight but for prior and t_min
    assert report.nfe == 49


@pytest.mark.parametrize("samples", [12, 49])
def test_the_ddpm_bound_of_dequantised_levels(samples):
    sde, data = VPSDE(), copies()
    dequantizer = UniformDequantizer(data.quantizer)
    estimator = BoundEstimator(sde, gaussian_eps(sde), data.quantizer, dequantizer, samples=samples, chain=50)
    report, _ = evaluate_likelihood(estimator, data, batch_size=1000)
    exact = Gaussian(sde)
    assert_mean(report, bits(exact.ddpm(50)), 0.08)
    assert bits(exact.ddpm(50)) > bits(exact.ddpm(500)) > bits(exact.elbo()) + 0.1
    assert report.nfe == samples + 1


def test_the_elbo_of_points_is_their_code_length():
    """The levels have probabilities, and the discrete decoder at t_min tells them apart without doubt."""
    sde, data = VPSDE(), copies()
    estimator = BoundEstimator(sde, points_eps(sde), data.quantizer, None, samples=32)
    report, _ = evaluate_likelihood(estimator, data, batch_size=1000)
    assert_mean(report, float(-PROBABILITIES[list(IMAGE)].log2().mean()), 0.02)


def test_the_ddpm_bound_of_points_falls_to_their_code_length_as_the_chain_grows():
    sde, data, above = VPSDE(), copies(), {}
    truth = float(-PROBABILITIES[list(IMAGE)].log2().mean())
    for chain in (100, 1600):
        estimator = BoundEstimator(sde, points_eps(sde), data.quantizer, None, samples=48, chain=chain)
        report, _ = evaluate_likelihood(estimator, data, batch_size=1000)
        assert report.std_error < 0.02
        above[chain] = report.bits_per_dim - truth, 4 * report.std_error
    assert above[100][0] > 0.2 > above[100][1]
    assert -above[1600][1] < above[1600][0] < above[100][0] / 4


def test_a_wide_decoder_costs_its_own_mass():
    """A short chain starts late, where the deviation is that of a cell: one draw by hand, with scipy's masses."""
    sde, data = VPSDE(), TensorDataset("points", torch.arange(4, dtype=torch.uint8)[:, None], quantizer=Quantizer(4))
    chain = 25
    estimator = BoundEstimator(sde, lambda x, t, y: torch.zeros_like(x), data.quantizer, None, samples=1, chain=chain)
    x0 = data.quantizer.encode(torch.arange(4, dtype=torch.uint8)).double().numpy()
    times = ddpm_schedule(sde, chain).times
    draws = Draws(0, range(4))
    found = estimator(data.fetch(range(4)), draws).log_prob.numpy()

    noise = draws.normal("noise", (2, 1)).double().numpy()[:, :, 0]
    (a, s), (a_end, s_end) = ([float(v) for v in sde.marginal(times[k])] for k in (0, -1))
    mean, std = x0 + s / a * noise[:, -1], s / a
    cuts = np.array([-np.inf, -2 / 3, 0, 2 / 3, np.inf])
    reconstruction = -np.log(stats.norm.cdf((cuts[1:] - mean) / std) - stats.norm.cdf((cuts[:-1] - mean) / std))
    prior = ((a_end * x0) ** 2 + s_end**2 - 1 - 2 * np.log(s_end)) / 2
    snr = np.exp(sde.log_snr(times).numpy())
    diffusion = (snr[:-1] / snr[1:] - 1).sum() / 2 * noise[:, 0] ** 2
    np.testing.assert_allclose(found, -(reconstruction + prior + diffusion), rtol=2e-6)


def test_continuous_data_have_no_dequantisation():
    sde, x = VPSDE(), torch.randn(2000, 2, generator=oracles.generator(1)) * STD + MEAN
    estimator = BoundEstimator(sde, gaussian_eps(sde), None, None, samples=64)
    report, _ = evaluate_likelihood(estimator, TensorDataset("gaussian", x), batch_size=1000)
    law = torch.distributions.Normal(MEAN, STD)
    values = -law.log_prob(x.double()).sum(1) / 2 / math.log(2)
    errors = torch.tensor(report.values, dtype=torch.float64) - values
    assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(2000)
    assert errors.std() / math.sqrt(2000) < 0.06


# Whose noise it is


def bounds():
    quantizer = Quantizer(4)
    sde = VPSDE()
    yield "elbo", BoundEstimator(sde, gaussian_eps(sde), quantizer, UniformDequantizer(quantizer), 5)
    yield "elbo of points", BoundEstimator(sde, gaussian_eps(sde), quantizer, None, 5)
    yield "ddpm", BoundEstimator(sde, gaussian_eps(sde), quantizer, UniformDequantizer(quantizer), 5, chain=25)
    yield "whole chain", BoundEstimator(sde, gaussian_eps(sde), quantizer, None, 24, chain=25)


BOUNDS = dict(bounds())


@pytest.mark.parametrize("name", BOUNDS)
def test_a_value_depends_on_seed_image_and_repeat_alone(name):
    """Bit for bit, where the model treats each image alone."""
    estimator = BOUNDS[name]
    levels = torch.randint(4, (11, 3, 2, 2), dtype=torch.uint8, generator=oracles.generator(5))
    levels[3:] = levels[3]  # equal images, whose noise tells them apart
    data = TensorDataset("levels", levels, quantizer=Quantizer(4))
    whole = evaluate_likelihood(estimator, data, repeats=2, seed=2)[0].values
    for batch_size in (1, 3, 10):
        assert evaluate_likelihood(estimator, data, repeats=2, seed=2, batch_size=batch_size)[0].values == whole
    assert len(set(whole)) == 11

    def value(indices, seed, repeat):
        return estimator(data.fetch(indices), Draws(seed, indices, repeat)).log_prob.tolist()

    first, second = (value(range(11), 2, repeat) for repeat in range(2))
    assert value([9, 3, 9], 2, 1) == [second[9], second[3], second[9]]
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert all(a != b for a, b in zip(first, value(range(11), 3, 0), strict=True))
    mean = [-(a + b) / 2 / 12 / math.log(2) for a, b in zip(first, second, strict=True)]
    assert whole == pytest.approx(mean, rel=1e-13)


def test_each_place_of_the_integral_has_noise_of_its_own():
    seen = []

    def eps_fn(x, t, y):
        seen.append((t, x))
        return torch.zeros_like(x)

    sde = VPSDE()
    data = TensorDataset("zero", torch.zeros(4, 6))
    evaluate_likelihood(BoundEstimator(sde, eps_fn, None, None, samples=5), data)
    assert len(seen) == 6
    noise = torch.stack([x / sde.marginal(t)[1][:, None] for t, x in seen])  # x0 is 0
    expected = Draws(0, range(4)).normal("noise", (6, 6)).transpose(0, 1)
    torch.testing.assert_close(noise, expected, rtol=1e-4, atol=1e-4)
    lam = sde.log_snr(torch.stack([t for t, _ in seen[:-1]]).double()).sort(0).values
    steps = lam.diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].mean().expand_as(steps), rtol=1e-3, atol=1e-3)  # even, from one offset
    assert len(lam[0].unique()) == 4  # an offset for each image


def test_labels_reach_the_network():
    seen = []

    def eps_fn(x, t, y):
        seen.append(y.tolist())
        return torch.zeros_like(x)

    data = TensorDataset("labelled", torch.zeros(5, 2), torch.tensor([2, 0, 1, 1, 2]), num_classes=3)
    evaluate_likelihood(BoundEstimator(VPSDE(), eps_fn, None, None, samples=1), data, batch_size=3)
    assert seen == [[2, 0, 1], [2, 0, 1], [1, 2], [1, 2]]


def test_a_bound_has_no_codes():
    data = TensorDataset("points", torch.zeros(5, 2))
    estimator = BoundEstimator(VPSDE(), gaussian_eps(VPSDE()), None, None, samples=1)
    with pytest.raises(ValueError, match="this estimate has no latent codes; only that of the ODE has"):
        evaluate_likelihood(estimator, data, codes=True)


def test_a_network_that_is_wrong_costs_more():
    """Data N(MEAN, STD^2), scored by a law that is shifted: more, by the divergence of the two at each time."""
    sde = VPSDE()
    x = torch.randn(2000, 2, generator=oracles.generator(1)) * STD + MEAN
    data = TensorDataset("gaussian", x)
    right, wrong = (
        evaluate_likelihood(BoundEstimator(sde, gaussian_eps(sde, mean), None, None, samples=12), data)[0]
        for mean in (MEAN, MEAN + 0.3)
    )
    difference = np.array(wrong.values) - np.array(right.values)  # of the same noise
    expected = 0.3**2 / (2 * STD**2) / math.log(2)  # KL(p || shifted p), bits/dim
    assert difference.mean() == pytest.approx(expected, abs=4 * difference.std() / math.sqrt(2000))
    assert difference.std() / math.sqrt(2000) < expected / 10
