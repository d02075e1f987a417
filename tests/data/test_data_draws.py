"""Streams of random numbers: whose they are, and their laws."""

import pytest
import torch
from scipy import stats

from data import Draws, StepDraws

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


# The draws of a training step


def everything(draws):
    """All kinds of draws of 12 samples."""
    x = torch.zeros(len(draws.places), 5, dtype=torch.float64)
    together = draws.rows("together", lambda generator: torch.rand(12, 2, generator=generator))
    return draws.uniform("uniform", (3,)), draws.normal_like("normal", x), together


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_batch_has_the_same_numbers_however_it_is_shared(count, parts):
    if 12 // count % parts:
        pytest.skip("no equal parts")
    whole = everything(StepDraws(3, 7, 12, range(12)))
    for rank in range(count):
        draws = StepDraws(3, 7, 12, range(rank, 12, count))
        shared = zip(*map(everything, draws.chunk(parts)), strict=True)
        for mine, expected in zip(shared, whole, strict=True):
            assert torch.equal(torch.cat(mine), expected[rank::count])


def test_seeds_steps_purposes_and_places_have_streams_of_their_own():
    drawn = [
        StepDraws(seed, step, 2, range(2)).uniform(purpose, (2,))
        for seed in (0, 1)
        for step in (0, 1)
        for purpose in "ab"
    ]
    assert torch.cat(drawn).unique().numel() == 32


@pytest.mark.parametrize("law", LAWS)
def test_the_laws_of_a_step(law):
    draws = StepDraws(0, 0, 500, range(500))
    x = draws.uniform("u", (40,)) if law == "uniform" else draws.normal_like("n", torch.zeros(500, 40))
    assert stats.kstest(x.flatten().double().numpy(), LAWS[law]).pvalue > 1e-3
    assert stats.kstest(x[:, 0].double().numpy(), LAWS[law]).pvalue > 1e-3  # across the samples
