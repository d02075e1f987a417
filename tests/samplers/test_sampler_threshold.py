"""Thresholds of the denoised estimate: the rules against numpy, and what every sampler makes of them."""

import numpy as np
import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import SAMPLERS, THRESHOLDS, Score, get_sampler
from samplers.threshold import clip, dynamic, thresholded
from sde_lib import VPSDE, GaussianMixture

SHAPE = (3, 4, 4)
LIMIT = 0.8


def images(n, scale=1.5, seed=0):
    return scale * torch.randn(n, *SHAPE, generator=oracles.generator(seed), dtype=torch.float64)


def wide(sde):
    """Score of data far beyond the limit."""
    mean = 2.0 * torch.randn(SHAPE, generator=oracles.generator(3), dtype=torch.float64).sign()
    return GaussianMixture([0.4, 0.6], torch.stack([mean, 1.3 * mean]), std=0.5).score_fn(sde)


# The rules.


def test_clip_is_numpys():
    x0 = images(1)
    assert np.array_equal(clip(x0, LIMIT, 0.9).numpy(), np.clip(x0.numpy(), -LIMIT, LIMIT))


@pytest.mark.parametrize("quantile", [0.3, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("scale", [0.2, 1.5, 6.0])
def test_dynamic_is_imagens_for_one_image(quantile, scale):
    """arXiv 2205.11487, section 2.3: s a percentile of |x0|; where s > 1, clip to [-s, s] and divide by s."""
    x0 = images(1, scale)
    s = max(np.percentile(np.abs(x0.numpy()), 100 * quantile), LIMIT)
    expected = np.clip(x0.numpy(), -s, s) / s * LIMIT
    np.testing.assert_allclose(dynamic(x0, LIMIT, quantile).numpy(), expected, rtol=1e-12)


def test_dynamic_takes_the_quantile_of_each_image_by_itself():
    x0 = torch.cat([images(1, 0.1), images(1, 2.0, 1), images(1, 9.0, 2)])
    together = dynamic(x0, LIMIT, 0.9)
    for k in range(3):
        assert torch.equal(together[k : k + 1], dynamic(x0[k : k + 1], LIMIT, 0.9))
    assert torch.equal(together[0], x0[0])  # within the limit: s is the limit


def test_dynamic_keeps_the_contrast_that_clip_saturates():
    """Of an image three times too bright dynamic leaves 1 - quantile at the limit, clip most."""
    x0 = images(1, 10.0)
    at_limit = [float((rule(x0, LIMIT, 0.9).abs() >= LIMIT).double().mean()) for rule in (clip, dynamic)]
    assert at_limit[0] > 0.9
    assert at_limit[1] == pytest.approx(0.1, abs=1 / x0.numel() + 1e-9)


# The wrapper.


@pytest.mark.parametrize("rule", ["clip", "dynamic"])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_score_is_that_of_the_thresholded_estimate(process, rule):
    """Times differ within the batch; the estimate of the new score is the rule of the old one's, by Tweedie."""
    sde, t = PROCESSES[process], torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in sde.marginal(t))
    x = sde.perturb(images(4), t, images(4, 1.0, 1))
    before, after = (
        (x + sigma**2 * f(x, t)) / alpha for f in (wide(sde), thresholded(sde, wide(sde), rule, LIMIT, 0.9))
    )
    assert (before.abs().flatten(1).amax(1) > 1.5 * LIMIT).all()
    # Rounding: the score is a difference of numbers of size |x|, seen here through 1 / alpha.
    torch.testing.assert_close(after, THRESHOLDS[rule](before, LIMIT, 0.9), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", ["clip", "dynamic"])
@pytest.mark.parametrize("process", PROCESSES)
def test_an_estimate_within_range_leaves_the_score_as_it_was(process, rule):
    sde, t = PROCESSES[process], torch.tensor([0.05, 0.5, 1.0], dtype=torch.float64)
    x = sde.perturb(images(3, 0.1), t, images(3, 1.0, 1))
    data = GaussianMixture([1.0], torch.zeros(1, *SHAPE), std=0.1)
    found, expected = thresholded(sde, data.score_fn(sde), rule, LIMIT, 0.9)(x, t), data.score(x, sde, t)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_none_is_the_score_itself():
    score = wide(VPSDE())
    assert thresholded(VPSDE(), score, "none", LIMIT, 0.9) is score


# Every sampler.


class Watched(Score):
    """Looks at the denoised estimate of every evaluation, not only of those that a callback sees."""

    largest = 0.0

    def __call__(self, x, t):
        value = super().__call__(x, t)
        Watched.largest = max(Watched.largest, float(self.denoised.abs().max()))
        return value


@pytest.mark.parametrize("rule", ["clip", "dynamic"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_estimate_of_every_sampler_lies_within_the_limit(name, rule, monkeypatch):
    """In the callback, in the final denoising, and (by a watching Score) at every evaluation; without a rule it passes.

    Up to rounding of the way from x0_hat to a score and back, a few units in the last place of x.
    """
    monkeypatch.setattr("samplers.base.Score", Watched)
    sde, seen = VPSDE(), []
    options = {"rtol": 0.3, "atol": 0.3} if name in ("adaptive_sde", "ode") else {"steps": 6}  # few evaluations
    largest = {}
    for threshold in ("none", rule):
        Watched.largest, seen = 0.0, []
        sampler = get_sampler(name, threshold=threshold, limit=LIMIT, quantile=0.9, t_end=0.01, **options)
        result = sampler.sample(
            sde,
            wide(sde),
            (3, *SHAPE),
            generator=oracles.generator(),
            dtype=torch.float64,
            callback=lambda progress, seen=seen: seen.append(float(progress.denoised.abs().max())),
        )
        assert len(seen) >= 1
        largest[threshold] = (Watched.largest, max(seen), float(result.x.abs().max()))
    assert min(largest["none"]) > 1.2 * LIMIT
    assert max(largest[rule]) <= LIMIT * (1 + 1e-9)
    assert max(largest[rule]) > 0.99 * LIMIT  # it is the limit that holds, and no smaller number


@pytest.mark.parametrize("name", ["ddim", "dpmpp", "ancestral"])
def test_a_threshold_out_of_reach_changes_no_image(name):
    sde, options = VPSDE(), {"steps": 8}
    plain, loose = (
        get_sampler(name, **options, **more)
        .sample(sde, wide(sde), (2, *SHAPE), generator=oracles.generator(), dtype=torch.float64)
        .x
        for more in ({}, {"threshold": "clip", "limit": 100.0})
    )
    torch.testing.assert_close(loose, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "dynamc"}, r"unknown threshold 'dynamc'; choose from .*; did you mean 'dynamic'"),
        ({"threshold": "clip", "limit": 0.0}, r"limit is 0.0, rho None and quantile 0.995; give limit and rho above 0"),
        ({"limit": float("nan")}, r"limit is nan"),
        ({"quantile": 0.0}, r"quantile 0.0; give limit and rho above 0, quantile in \(0, 1\]"),
        ({"quantile": 1.5}, r"quantile 1.5; give"),
    ],
)
@pytest.mark.parametrize("name", ["heun", "pc", "adaptive_sde"])
def test_wrong_options_are_explained(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_sampler(name, **options)
