"""Variations of an image, and other labels for it, where the data are normal and all is known."""

import oracles
import pytest
import torch

from evaluation import relabel, variations
from samplers import get_sampler
from sde_lib import GaussianMixture

every_process = pytest.mark.parametrize("sde", oracles.PROCESSES.values(), ids=oracles.PROCESSES.keys())


@every_process
def test_variations_have_the_law_of_x0_given_a_noised_image(sde):
    """E over x_t of p(x0 | x_t), with x_t ~ N(alpha x0, sigma^2): a normal law per pixel, tested by its two moments."""
    mixture, mean, variance = oracles.gaussian((3,))
    x0 = torch.tensor([0.8, -0.4, 0.1])
    t = float(sde.time_from_log_snr(torch.tensor(0.0, dtype=torch.float64)))
    sampler = get_sampler("heun", steps=20, t_start=t, grid="log_snr")
    n = 3000
    x = variations(sampler, sde, mixture.score_fn(sde), x0, n, batch_size=n, seed=2, progress=False).x.double()
    # the flow keeps (x_t - alpha m) / std_t; with sigma = alpha that is (x0 - m + z) / sqrt(v + 1) times sqrt(v)
    shrink = (variance / (variance + 1)).sqrt()
    expected, std = mean + shrink * (x0 - mean), shrink
    assert ((x.mean(0) - expected) / std * n**0.5).abs().max() < 5
    assert ((x.var(0) / std**2 - 1) * (n / 2) ** 0.5).abs().max() < 5


def test_the_noise_of_a_variation_follows_from_its_number():
    mixture, _, _ = oracles.gaussian((2,))
    sde = oracles.PROCESSES["vp"]
    sampler = get_sampler("dpmpp_sde", steps=4, t_start=0.4)
    x0 = torch.tensor([0.5, -0.5])
    some = variations(sampler, sde, mixture.score_fn(sde), x0, 5, batch_size=2, seed=1, progress=False)
    more = variations(sampler, sde, mixture.score_fn(sde), x0, 7, batch_size=7, seed=1, progress=False)
    torch.testing.assert_close(some.x, more.x[:5])
    assert len(torch.unique(more.x, dim=0)) == 7


def test_little_noise_leaves_the_image_as_it_is():
    mixture, _, _ = oracles.gaussian((2,))
    sde, x0 = oracles.PROCESSES["vp"], torch.tensor([0.9, -0.7])
    sampler = get_sampler("ddim", steps=4, t_start=0.002)
    x = variations(sampler, sde, mixture.score_fn(sde), x0, 50, batch_size=50, progress=False).x
    assert (x - x0).abs().max() < 5 * float(sde.sigma(torch.tensor(0.002)))


@every_process
def test_a_new_label_keeps_what_the_old_one_did_not_tell(sde):
    """Each class is normal: the map between them keeps the standard score of every pixel."""
    laws = [oracles.gaussian((4,), seed) for seed in (0, 1)]

    def score_fn(x, t, y):
        parts = torch.stack([law.score(x, sde, t) for law, _, _ in laws])
        return parts[y, torch.arange(len(x))]

    y = torch.tensor([0, 1, 0, 1])
    means, stds = (torch.stack([part[k] for part in laws]) for k in (1, 2))
    stds = stds.sqrt()
    z = torch.randn(4, 4, generator=oracles.generator(), dtype=torch.float64)
    x = means[y] + stds[y] * z
    result = relabel(sde, score_fn, x, before=y, after=1 - y, rtol=1e-8, atol=1e-8)
    # exact up to the noise at t_min and the unequal prior of the two classes at T
    expected = through(sde, x, means[y], stds[y], means[1 - y], stds[1 - y])
    torch.testing.assert_close(result.x, expected, rtol=1e-5, atol=1e-5)
    assert (result.x - (means[1 - y] + stds[1 - y] * z)).abs().max() < 0.2
    same = relabel(sde, score_fn, x, before=y, after=y, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(same.x, x, rtol=1e-5, atol=1e-5)


def through(sde, x, m0, s0, m1, s1):
    """The flow of one normal law up to T, and of the other one down again."""
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (sde.t_min, sde.T))

    def std(s, t):
        alpha, sigma = sde.marginal(t)
        return torch.sqrt(alpha**2 * s**2 + sigma**2)

    def alpha(t):
        return sde.log_alpha(t).exp()

    code = alpha(end) * m0 + std(s0, end) * (x - alpha(start) * m0) / std(s0, start)
    return alpha(start) * m1 + std(s1, start) * (code - alpha(end) * m1) / std(s1, end)


def test_another_score_may_decode():
    sde = oracles.PROCESSES["vp"]
    one, two = (GaussianMixture([1.0], torch.full((1, 2), m), std=0.5) for m in (-1.0, 1.0))
    y = torch.zeros(3, dtype=torch.int64)
    result = relabel(
        sde,
        lambda x, t, y: one.score(x, sde, t),
        torch.full((3, 2), -1.0, dtype=torch.float64),
        before=y,
        after=y,
        decode_score_fn=lambda x, t, y: two.score(x, sde, t),
    )
    assert (result.x - 1).abs().max() < 0.02
