"""Many samples in batches: how many, with which noise, labels and cost."""

import math

import pytest
import torch

from evaluation import generate
from samplers import SAMPLERS, SamplingError, get_sampler
from sde_lib import VPSDE

SDE = VPSDE()
STEPS = 5
NFE = dict.fromkeys(SAMPLERS, 6) | {"pc": 11, "heun": 11, "stochastic_heun": 11, "dpm_solver": 16}
"""Evaluations for five steps and the final denoising; these make several in a step. Adaptive ones are not here."""
for adaptive in ("ode", "adaptive_sde"):
    del NFE[adaptive]


def normal_score(x, t):
    """The score of standard normal data, which the process leaves as they are."""
    return -x


def draw(n, batch_size, **changes):
    name = changes.pop("sampler", "ancestral")
    loose = {"rtol": 0.5, "atol": 0.2} if name == "adaptive_sde" else {}  # or it takes hundreds of steps
    sampler = get_sampler(name, steps=STEPS, **loose)
    return generate(sampler, SDE, changes.pop("score", normal_score), (2, 3), n, batch_size=batch_size, **changes)


@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (7, 3), (6, 3), (2, 100)])
def test_as_many_as_asked_for_and_no_two_alike(n, batch_size):
    x = draw(n, batch_size).x
    assert x.shape == (n, 2, 3)
    assert x.dtype == torch.float32
    assert x.unique().numel() == 6 * n


def test_the_same_seed_gives_the_same_samples():
    x = draw(7, 3, seed=4).x
    torch.manual_seed(1)
    assert torch.equal(draw(7, 3, seed=4).x, x)
    assert not torch.isin(draw(7, 3, seed=5).x, x).any()


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_the_same_in_every_batch_and_process(name):
    """Not to the bit: sums over a batch may be rounded in another order."""
    x = draw(7, 7, sampler=name, seed=4).x
    # the ODE's steps are those of the worst image, so there within its tolerance of 1e-5
    tolerance = {"atol": 1e-3 if name == "ode" else 1e-5, "rtol": 0}
    for batch_size in (1, 3):
        torch.testing.assert_close(draw(7, batch_size, sampler=name, seed=4).x, x, **tolerance)
    shard = draw(3, 2, sampler=name, seed=4, first=4).x  # as a second process would draw it
    torch.testing.assert_close(shard, x[4:], **tolerance)


def test_the_start_of_an_image_is_the_same_bits_everywhere():
    starts = {}
    for batch_size in (1, 3, 7):
        seen = []
        draw(7, batch_size, seed=4, sampler="ddim", score=lambda x, t, seen=seen: seen.append(x.clone()) or -x)
        starts[batch_size] = torch.cat(seen[:: STEPS + 1])
    assert torch.equal(starts[1], starts[3])
    assert torch.equal(starts[1], starts[7])


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_cost_is_that_of_one_sample(name):
    calls = []

    def score(x, t):
        calls.append(len(x))
        return normal_score(x, t)

    nfe = draw(7, 3, sampler=name, score=score).nfe
    if name in NFE:
        assert nfe == NFE[name]
        assert calls == [3] * nfe + [3] * nfe + [1] * nfe
    else:  # adaptive: the dearest batch counts
        batches = [draw(n, 3, sampler=name, first=first).nfe for n, first in ((3, 0), (3, 3), (1, 6))]
        assert nfe == max(batches)
        assert len(calls) == sum(batches)


def test_batches_are_independent():
    x = draw(4000, 1500).x
    assert abs(x.mean()) < 5 / math.sqrt(x.numel())
    batches = x.flatten(1).split(1500)
    assert abs(torch.corrcoef(torch.stack([b[:1000].flatten() for b in batches]))[0, 1]) < 5 / math.sqrt(6000)


def test_labels_follow_their_samples():
    seen = []

    def score(x, t, y):
        seen.append(y.tolist())
        return -x + 100 * y.view(-1, 1, 1)  # the class moves the sample

    labels = torch.tensor([0, 1, 0, 0, 1, 1, 0])
    x = draw(7, 3, score=score, labels=labels).x
    assert [seen[0], seen[STEPS + 1], seen[-1]] == [[0, 1, 0], [0, 1, 1], [0]]
    assert torch.equal(x.mean((1, 2)) > 10, labels == 1)


def test_numbers_that_make_no_sense():
    for n, batch_size, told in ((0, 1, "n is 0"), (1, 0, "batch_size is 0"), (-3, 2, "n is -3")):
        with pytest.raises(ValueError, match=f"{told}; it must be at least 1"):
            draw(n, batch_size)
    with pytest.raises(ValueError, match="first is -1; it must be at least 0"):
        draw(4, 2, first=-1)
    with pytest.raises(ValueError, match=r"4 samples need labels of shape \(4,\) or \(4, A\), got \(3,\)"):
        draw(4, 2, labels=torch.zeros(3, dtype=torch.int64))


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(SamplingError, match="the score is not finite at t = 1: an untrained or diverged network"):
        draw(4, 2, score=lambda x, t: x * math.nan)
