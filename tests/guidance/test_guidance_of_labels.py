"""Classifier-free and classifier guidance on a mixture whose classes are its components."""

import math

import oracles
import pytest
import torch
from scipy.integrate import quad

from guidance import ClassifierFreeGuidance, ClassifierGuidance
from guidance.classifier_free import UNKNOWN
from samplers import get_sampler
from sde_lib import VPSDE, GaussianMixture

every_process = pytest.mark.parametrize("sde", oracles.PROCESSES.values(), ids=oracles.PROCESSES.keys())
LAW = oracles.mixture_2d()
CLASSES = [GaussianMixture([1.0], LAW.means[k : k + 1], LAW.covariances[k]) for k in range(2)]
POINTS = LAW.sample(40, generator=oracles.generator(3), dtype=torch.float64)
LABELS = torch.arange(40) % 2


def labelled(sde):
    """(x, t, y) -> exact score of the component y, or of the whole mixture."""
    calls = []

    def score_fn(x, t, y):
        calls.append(len(x))
        parts = torch.stack([law.score(x, sde, t) for law in [*CLASSES, LAW]])
        return parts[torch.where(y == UNKNOWN, 2, y), torch.arange(len(x))]

    score_fn.calls = calls
    return score_fn


def tilted_score(x, y, w):
    """grad log [p(x | y)^w p(x)^(1 - w)], by autograd of the densities."""
    x = x.clone().requires_grad_()
    of_class = torch.stack([law.log_prob(x) for law in CLASSES])[y, torch.arange(len(x))]
    return torch.autograd.grad((w * of_class + (1 - w) * LAW.log_prob(x)).sum(), x)[0]


def early(sde, sigma):
    """The time at which sigma / alpha is this."""
    return sde.time_from_log_snr(torch.tensor(-2 * math.log(sigma), dtype=torch.float64))


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.5])
@every_process
def test_the_guided_score_tends_to_that_of_the_tilted_density(sde, w):
    """Where the noise ends, the error is of the order of its variance."""
    errors = []
    for sigma in (0.08, 0.04):
        t = early(sde, sigma)
        alpha = sde.log_alpha(t).exp()
        guided = ClassifierFreeGuidance(sde, labelled(sde), w)(alpha * POINTS, t.expand(40), LABELS)
        errors.append(float((alpha * guided - tilted_score(POINTS, LABELS, w)).abs().max()))
    assert errors[1] < 0.1 * float(tilted_score(POINTS, LABELS, w).abs().max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


@every_process
def test_the_guided_score_at_every_time(sde):
    t = torch.linspace(float(sde.t_min), sde.T, 40, dtype=torch.float64)
    x = POINTS * sde.sigma(t).clamp(min=1).unsqueeze(1)
    score_fn = labelled(sde)
    told, untold = score_fn(x, t, LABELS), score_fn(x, t, torch.full((40,), UNKNOWN))
    torch.testing.assert_close(
        ClassifierFreeGuidance(sde, score_fn, 3.0)(x, t, LABELS), untold + 3 * (told - untold), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(ClassifierFreeGuidance(sde, score_fn, 1.0)(x, t, LABELS), told)
    torch.testing.assert_close(ClassifierFreeGuidance(sde, score_fn, 0.0)(x, t, LABELS), untold)


@every_process
def test_outside_the_interval_there_is_no_guidance(sde):
    levels = torch.tensor([0.05, 0.2, 0.8, 2.0], dtype=torch.float64)
    t = torch.stack([early(sde, float(level)) for level in levels])
    x, y, score_fn = POINTS[:4], LABELS[:4], labelled(sde)
    guided = ClassifierFreeGuidance(sde, score_fn, 3.0, low=0.1, high=1.0)(x, t, y)
    torch.testing.assert_close(guided[[0, 3]], score_fn(x, t, y)[[0, 3]], rtol=1e-10, atol=1e-10)
    everywhere = ClassifierFreeGuidance(sde, score_fn, 3.0)(x, t, y)
    torch.testing.assert_close(guided[[1, 2]], everywhere[[1, 2]])
    assert not torch.isclose(everywhere[[0, 3]], guided[[0, 3]]).all(1).any()


def test_the_network_is_asked_once_with_twice_the_batch_or_not_at_all():
    sde, score_fn = VPSDE(), labelled(VPSDE())
    guidance = ClassifierFreeGuidance(sde, score_fn, 3.0, low=0.1)
    for level, calls in ((0.5, [80]), (0.05, [40])):
        score_fn.calls.clear()
        guidance(POINTS, early(sde, level).expand(40), LABELS)
        assert score_fn.calls == calls
        assert guidance.evaluations == calls[0] // 40


def test_a_sampler_counts_what_was_evaluated():
    """20 steps of which those within the interval cost twice as much."""
    sde = VPSDE()
    guidance = ClassifierFreeGuidance(sde, labelled(sde), 2.0, low=0.3, high=3.0)
    seen = []

    def score_fn(x, t):
        result = guidance(x, t, LABELS)
        seen.append(guidance.evaluations)
        score_fn.evaluations = guidance.evaluations
        return result

    result = get_sampler("ddim", steps=20).sample(sde, score_fn, (40, 2), dtype=torch.float64)
    assert result.nfe == sum(seen)
    assert set(seen) == {1, 2}


def test_the_flow_ends_at_the_class():
    """w = 1 draws from p(x | y): moments of 4,000 samples within five standard errors."""
    sde = VPSDE()
    y = torch.arange(4000) % 2
    guidance = ClassifierFreeGuidance(sde, labelled(sde), 1.0)
    x = get_sampler("heun", steps=40).sample(
        sde, lambda x, t: guidance(x, t, y), (4000, 2), generator=oracles.generator(5), dtype=torch.float64
    )
    for k, law in enumerate(CLASSES):
        mine = x.x[y == k]
        error = (mine.mean(0) - law.mean) / law.covariance.diagonal().sqrt()
        assert error.abs().max() < 5 / 2000**0.5
        assert (torch.cov(mine.T) - law.covariance).abs().max() < 5 * (2 / 2000) ** 0.5 * law.covariance.max()


# By a classifier


def log_class(sde, k):
    """The exact log p(y = k | x_t) of the mixture."""

    def log_prob_fn(x, t):
        return torch.log(LAW.responsibilities(x, sde, t)[:, k])

    return log_prob_fn


@pytest.mark.parametrize("k", [0, 1])
@every_process
def test_an_exact_classifier_makes_the_score_that_of_its_class(sde, k):
    t = torch.linspace(float(sde.t_min), sde.T, 40, dtype=torch.float64)
    x = sde.log_alpha(t).exp().unsqueeze(1) * POINTS + 0.5 * sde.sigma(t).unsqueeze(1)
    guided = ClassifierGuidance(sde_score(sde), log_class(sde, k))(x, t)
    torch.testing.assert_close(guided, CLASSES[k].score(x, sde, t), rtol=1e-6, atol=1e-7)
    stronger = ClassifierGuidance(sde_score(sde), log_class(sde, k), scale=2.5)(x, t)
    untold = LAW.score(x, sde, t)
    torch.testing.assert_close(stronger, untold + 2.5 * (guided - untold), rtol=1e-6, atol=1e-7)


def sde_score(sde):
    return LAW.score_fn(sde)


def test_the_two_kinds_of_guidance_agree():
    sde, t = VPSDE(), torch.full((40,), 0.3, dtype=torch.float64)
    free = ClassifierFreeGuidance(sde, labelled(sde), 4.0)(POINTS, t, torch.zeros(40, dtype=torch.int64))
    by_classifier = ClassifierGuidance(sde_score(sde), log_class(sde, 0), scale=4.0)(POINTS, t)
    torch.testing.assert_close(free, by_classifier, rtol=1e-8, atol=1e-8)


def test_any_log_probability_will_do():
    """A half-line y: the samples lie there, by the law cut at 0 (mean by quadrature)."""
    sde = VPSDE()
    law = GaussianMixture([1.0], torch.tensor([[0.3]]), torch.tensor([[0.25]]))

    def log_above_zero(x, t):  # of x0 given x_t, which is normal
        alpha, sigma = sde.marginal(t)
        variance = 1 / (1 / 0.25 + (alpha / sigma) ** 2)
        mean = variance * (0.3 / 0.25 + alpha / sigma**2 * x[:, 0])
        return torch.special.log_ndtr(mean / variance.sqrt())

    guided = ClassifierGuidance(law.score_fn(sde), log_above_zero)
    x = (
        get_sampler("heun", steps=60, grid="log_snr")
        .sample(sde, guided, (4000, 1), generator=oracles.generator(7), dtype=torch.float64)
        .x
    )
    density = lambda v: math.exp(-0.5 * (v - 0.3) ** 2 / 0.25)  # noqa: E731
    mass = quad(density, 0, 4)[0]
    mean = quad(lambda v: v * density(v), 0, 4)[0] / mass
    std = (quad(lambda v: v * v * density(v), 0, 4)[0] / mass - mean**2) ** 0.5
    assert float(x.min()) > -0.02
    assert float(x.mean()) == pytest.approx(mean, abs=5 * std / 4000**0.5)


@pytest.mark.parametrize("scale", [-1.0, math.inf, math.nan])
def test_a_scale_that_makes_no_sense(scale):
    with pytest.raises(ValueError, match=r"the guidance scale is .*; give a number from 0 on"):
        ClassifierFreeGuidance(VPSDE(), labelled(VPSDE()), scale)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)])
def test_an_empty_interval(low, high):
    with pytest.raises(ValueError, match=r"the guidance interval is .* in sigma / alpha; give 0 <= low < high"):
        ClassifierFreeGuidance(VPSDE(), labelled(VPSDE()), 2.0, low=low, high=high)


@pytest.mark.parametrize(
    ("log_prob_fn", "match"),
    [
        (lambda x, t: x, r"log-probabilities of shape \(3, 2\) for 3 images; it must give \(3,\)"),
        (lambda x, t: torch.zeros(3), "does not depend on x: it has no gradient to follow"),
    ],
)
def test_a_classifier_that_is_none(log_prob_fn, match):
    sde = VPSDE()
    with pytest.raises(ValueError, match=match):
        ClassifierGuidance(sde_score(sde), log_prob_fn)(POINTS[:3], torch.full((3,), 0.5))
    with pytest.raises(ValueError, match="the guidance scale is nan; give a number"):
        ClassifierGuidance(sde_score(sde), log_prob_fn, scale=math.nan)
