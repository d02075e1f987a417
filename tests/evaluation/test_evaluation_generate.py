"""Many samples in batches: how many, with which noise, labels and cost."""

import math

import pytest
import torch

from evaluation import generate
from samplers import SAMPLERS, get_sampler
from sde_lib import VPSDE

SDE = VPSDE()
STEPS = 5
NFE = {"ancestral": 6, "reverse_diffusion": 6, "euler_maruyama": 6, "pc": 11}
"""Evaluations for five steps and the final denoising; the corrector makes one more in each step."""


def normal_score(x, t):
    """The score of standard normal data, which the process leaves as they are."""
    return -x


def draw(n, batch_size, **changes):
    sampler = get_sampler(changes.pop("sampler", "ancestral"), steps=STEPS)
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
    assert torch.equal(draw(6, 3, seed=4).x, x[:6])  # whole batches do not depend on what follows


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
        assert nfe == max(calls.count(3) // 2, calls.count(1))


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
    for n, batch_size in ((0, 1), (1, 0), (-3, 2)):
        with pytest.raises(ValueError, match=f"{n} samples in batches of {batch_size}: both must be at least 1"):
            draw(n, batch_size)
    with pytest.raises(ValueError, match=r"4 samples need labels of shape \(4,\), got \(3,\)"):
        draw(4, 2, labels=torch.zeros(3, dtype=torch.int64))


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(RuntimeError, match="samples are not finite: the network has diverged, or the sampler needs"):
        draw(4, 2, score=lambda x, t: x * math.nan)
