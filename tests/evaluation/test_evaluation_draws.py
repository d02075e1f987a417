"""Streams of random numbers: whose they are, and their laws."""

import pytest
import torch
from scipy import stats

from evaluation import Draws

LAWS = {"uniform": stats.uniform.cdf, "normal": stats.norm.cdf}


@pytest.mark.parametrize("law", LAWS)
def test_the_numbers_of_an_image_are_its_own(law):
    """Not of its place in the batch, nor of its neighbours."""

    def draw(indices, seed=3, repeat=1, purpose="noise"):
        return getattr(Draws(seed, indices, repeat), law)(purpose, (2, 3))

    whole = draw(range(10))
    assert whole.shape == (10, 2, 3)
    assert whole.dtype == torch.float32
    assert torch.equal(draw([7, 2, 2]), whole[[7, 2, 2]])
    others = [draw([7], seed=4), draw([7], repeat=0), draw([7], purpose="probes"), draw([17])]
    values = torch.cat([whole, *others]).flatten()
    assert len(values.unique()) == len(values)


def test_some_numbers_are_the_same_in_every_repeat():
    first, second = (Draws(3, [4, 7], repeat) for repeat in (0, 5))
    assert torch.equal(first.of_image().normal("probes", (9,)), second.of_image().normal("probes", (9,)))
    assert torch.equal(first.normal("probes", (9,)), second.of_image().normal("probes", (9,)))


@pytest.mark.parametrize("law", LAWS)
def test_the_numbers_follow_their_law_within_images_and_across(law):
    across = getattr(Draws(0, range(4000)), law)("noise", ())
    assert across.shape == (4000,)
    within = getattr(Draws(0, [5]), law)("noise", (4000,)).flatten()
    repeats = torch.cat([getattr(Draws(0, [5], repeat), law)("noise", (1,)) for repeat in range(2000)]).flatten()
    for numbers in (across, within, repeats):
        assert stats.kstest(numbers.double(), LAWS[law]).pvalue > 1e-3
        centred = numbers.double() - numbers.double().mean()
        correlation = (centred[1:] * centred[:-1]).mean() / centred.square().mean()
        assert abs(correlation) < 4 / len(numbers) ** 0.5


def test_uniform_numbers_are_below_one():
    numbers = Draws(0, range(4)).uniform("u", (1_000_000,))
    assert 0 <= numbers.min() < 1e-5
    assert 1 - 1e-5 < numbers.max() < 1
