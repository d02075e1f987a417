"""One step of each method against the published formula, written here independently of the process's ``transition``."""

import numpy as np
import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import CORRECTORS, GeneratorNoise, Score, get_sampler
from samplers.ancestral import VARIANCES
from samplers.langevin import correct
from sde_lib import SDES, VESDE, VPSDE, ddpm_schedule

SHAPE = (4, 3, 5)
STEPS = 1000
CHAIN = ddpm_schedule(VPSDE(), STEPS)
INDICES = (1, 10, 500, 900)  # of the chain, which goes from i to i - 1


def draw(seed):
    return torch.randn(SHAPE, generator=oracles.generator(seed), dtype=torch.float64)


def noise(seed=7):
    """The noise that a sampler draws first from a generator of this seed."""
    return draw(seed)


def score_of(sde, eps, seed=7):
    """A score -eps(x) / sigma, for an eps that is no linear function."""
    return Score(sde, lambda x, t: -eps(x) / sde.sigma(t[0]), GeneratorNoise(oracles.generator(seed)))


def step(name, score, x, t, s, **options):
    sampler = get_sampler(name, **options)
    return sampler.step(score, x, t, s, sampler.init(score, x, torch.stack([t, s])))[0]


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("i", INDICES)
def test_an_ancestral_step_is_ddpms(i, variance):
    """arXiv 2006.11239, equations 6 and 7, by way of the predicted x0."""
    beta, total, before = (float(v) for v in (CHAIN.betas[i], CHAIN.alphas_cumprod[i], CHAIN.alphas_cumprod[i - 1]))
    x, eps = 1.3 * draw(0), torch.sin
    x0 = (x - np.sqrt(1 - total) * eps(x)) / np.sqrt(total)
    mean = np.sqrt(before) * beta / (1 - total) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - total) * x
    spread = {"posterior": np.sqrt(beta * (1 - before) / (1 - total)), "beta": np.sqrt(beta)}[variance]

    score = score_of(VPSDE(), eps)
    found = step("ancestral", score, x, CHAIN.times[i], CHAIN.times[i - 1], variance=variance)
    torch.testing.assert_close(found, mean + spread * noise(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("i", INDICES)
def test_an_ancestral_step_is_ddpms_in_terms_of_the_noise(i):
    """arXiv 2006.11239, algorithm 2, line 4."""
    beta, total = float(CHAIN.betas[i]), float(CHAIN.alphas_cumprod[i])
    x = draw(0)
    expected = (x - beta / np.sqrt(1 - total) * torch.cos(x)) / np.sqrt(1 - beta) + np.sqrt(beta) * noise()
    score = score_of(VPSDE(), torch.cos)
    found = step("ancestral", score, x, CHAIN.times[i], CHAIN.times[i - 1], variance="beta")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("i", INDICES)
def test_a_reverse_diffusion_step_is_songs_for_vp(i):
    """arXiv 2011.13456, algorithm 3: (2 - sqrt(1 - beta)) x + beta s + sqrt(beta) z."""
    beta, total = float(CHAIN.betas[i]), float(CHAIN.alphas_cumprod[i])
    x = draw(0)
    expected = (2 - np.sqrt(1 - beta)) * x - beta * torch.sin(x) / np.sqrt(1 - total) + np.sqrt(beta) * noise()
    found = step("reverse_diffusion", score_of(VPSDE(), torch.sin), x, CHAIN.times[i], CHAIN.times[i - 1])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ancestral", "reverse_diffusion"])
@pytest.mark.parametrize("i", INDICES)
def test_a_step_is_songs_for_ve(i, name):
    """With sigma_i = sigma_min (sigma_max / sigma_min)^(i / N), a step adds the variance sigma_i^2 - sigma_{i-1}^2.

    arXiv 2011.13456: algorithm 2 for reverse diffusion, appendix F for ancestral sampling.
    """
    sigmas = 0.01 * (50 / 0.01) ** (np.arange(STEPS + 1) / STEPS)
    added = sigmas[i] ** 2 - sigmas[i - 1] ** 2
    x = sigmas[i] * draw(0)
    shrink = sigmas[i - 1] / sigmas[i] if name == "ancestral" else 1.0
    expected = x - added * torch.sin(x) / sigmas[i] + shrink * np.sqrt(added) * noise()
    t, s = (torch.tensor(j / STEPS, dtype=torch.float64) for j in (i, i - 1))
    found = step(name, score_of(VESDE(0.01, 50.0), torch.sin), x, t, s)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_an_euler_maruyama_step_is_the_reverse_sdes(process):
    sde = PROCESSES[process]
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.61, 0.58))
    x, score = draw(0), score_of(sde, torch.sin)
    drift, diffusion = sde.reverse(lambda x, t: -torch.sin(x) / sde.sigma(t[0])).sde(x, t)
    expected = x + drift * float(s - t) + float(diffusion[0]) * float(t - s) ** 0.5 * noise()
    torch.testing.assert_close(step("euler_maruyama", score, x, t, s), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_an_euler_step_of_the_flow_is_the_probability_flow_drift(process):
    sde = PROCESSES[process]
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.61, 0.58))
    x = draw(0)
    drift, diffusion = sde.reverse(lambda x, t: -torch.sin(x) / sde.sigma(t[0]), probability_flow=True).sde(x, t)
    assert not diffusion.any()
    found = step("ode", score_of(sde, torch.sin), x, t, s, method="euler")
    torch.testing.assert_close(found, x + drift * float(s - t), rtol=1e-12, atol=1e-12)


# Correctors.


def test_the_langevin_step_is_songs():
    """arXiv 2011.13456, algorithms 4 (alpha = 1) and 5: e = 2 alpha (r |z| / |g|)^2, norms averaged over the batch."""
    sde, t = VPSDE(), torch.tensor(0.4, dtype=torch.float64)
    x, snr = draw(0), 0.16
    g, z = -torch.sin(x) / sde.sigma(t), noise()
    norms = [np.mean([np.linalg.norm(sample) for sample in v.numpy()]) for v in (z, g)]
    for alpha in (1.0, 0.98):
        size = 2 * alpha * (snr * norms[0] / norms[1]) ** 2
        expected = x + size * g + np.sqrt(2 * size) * z
        ratio2 = torch.tensor(alpha, dtype=torch.float64)
        found = correct(score_of(sde, torch.sin), x, t, ratio2, CORRECTORS["langevin"], snr)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", SDES)
def test_the_annealed_langevin_step_follows_sigma(process):
    """arXiv 2006.09011, algorithm 1 and section 4.3 in Song's signal-to-noise form: e = 2 alpha (r sigma)^2."""
    sde, t = PROCESSES[process], torch.tensor(0.4, dtype=torch.float64)
    x, snr, alpha = draw(0), 0.16, 0.97
    size = 2 * alpha * (snr * float(sde.sigma(t))) ** 2
    expected = x - size * torch.sin(x) / sde.sigma(t) + np.sqrt(2 * size) * noise()
    ratio2 = torch.tensor(alpha, dtype=torch.float64)
    found = correct(score_of(sde, torch.sin), x, t, ratio2, CORRECTORS["annealed_langevin"], snr)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_annealed_rule_does_not_know_the_batch_and_the_langevin_rule_does():
    sde, t, ratio2 = VPSDE(), torch.tensor(0.4, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    x, others = draw(0)[:1], 30 * draw(1)

    class SameNoise(GeneratorNoise):
        """Every sample of the batch gets the same noise."""

        def fresh(self, x):
            return noise()[:1].expand(x.shape)

    alone, together = {}, {}
    for name, rule in CORRECTORS.items():
        score = Score(sde, lambda x, t: -x, SameNoise())
        alone[name] = correct(score, x, t, ratio2, rule, 0.1)
        together[name] = correct(score, torch.cat([x, others]), t, ratio2, rule, 0.1)[:1]
    assert torch.equal(alone["annealed_langevin"], together["annealed_langevin"])
    assert not torch.allclose(alone["langevin"], together["langevin"])


@pytest.mark.parametrize("i", INDICES)
def test_a_pc_step_is_songs_for_vp(i):
    """arXiv 2011.13456, algorithm 3: the predictor, then the corrector at the new time, with fresh noise.

    The step size takes alpha = 1 - beta of the step just made (the paper's index is one lower).
    """
    beta = float(CHAIN.betas[i])
    sigma, sigma_before = (float((1 - CHAIN.alphas_cumprod[j]).sqrt()) for j in (i, i - 1))
    generator = oracles.generator(7)
    x = draw(0)
    z = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3)]
    expected = (2 - np.sqrt(1 - beta)) * x - beta * torch.sin(x) / sigma + np.sqrt(beta) * z[0]
    for k in (1, 2):
        g = -torch.sin(expected) / sigma_before
        norm_z, norm_g = (v.flatten(1).square().sum(1).sqrt().mean() for v in (z[k], g))
        size = 2 * (1 - beta) * (0.16 * norm_z / norm_g) ** 2
        expected = expected + size * g + (2 * size).sqrt() * z[k]
    score = score_of(VPSDE(), torch.sin)
    found = step("pc", score, x, CHAIN.times[i], CHAIN.times[i - 1], corrector="langevin", corrector_steps=2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert score.nfe == 3


@pytest.mark.parametrize("process", PROCESSES)
def test_with_the_corrector_first_the_updates_are_made_at_the_time_before_the_step(process):
    """As in Song's code: x is corrected at t, and then predicted from t to s."""
    sde = PROCESSES[process]
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.61, 0.58))
    x, snr = draw(0), 0.1
    generator = oracles.generator(7)
    z = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3)]
    ratio, std = sde.transition(s, t)
    size = 2 * (ratio * snr * sde.sigma(t)) ** 2
    expected = x
    for k in (0, 1):
        expected = expected - size * torch.sin(expected) / sde.sigma(t) + (2 * size).sqrt() * z[k]
    expected = (2 - ratio) * expected - std**2 * torch.sin(expected) / sde.sigma(t) + std * z[2]
    options = {"corrector_first": True, "corrector_steps": 2, "snr": snr}
    found = step("pc", score_of(sde, torch.sin), x, t, s, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_final_denoising_is_tweedies_formula(process):
    sde = PROCESSES[process]
    t = torch.tensor(0.05, dtype=torch.float64)
    x, score = draw(0), score_of(sde, torch.sin)
    alpha, sigma = (float(v) for v in sde.marginal(t))
    torch.testing.assert_close(score.denoise(x, t), (x - sigma * torch.sin(x)) / alpha, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor": "euler_maru"}, r"unknown predictor 'euler_maru'; choose from .*; did you mean 'euler_maruyama'"),
        ({"corrector": "langevinn"}, r"unknown corrector 'langevinn'; choose from .*; did you mean 'langevin'"),
        ({"corrector_steps": -1}, r"corrector_steps is -1 and snr 0.16; they must be at least 0 and above 0"),
        ({"snr": 0.0}, r"corrector_steps is 1 and snr 0.0; they must be at least 0 and above 0"),
        ({"snr": float("nan")}, r"snr nan; they must be"),
    ],
)
def test_wrong_options_of_pc_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        get_sampler("pc", **options)


def test_an_unknown_variance_is_explained():
    with pytest.raises(ValueError, match=r"unknown variance 'small'; choose from 'beta', 'posterior'"):
        get_sampler("ancestral", variance="small")
