"""Samples dealt out to processes, and kept batch by batch: those of ``generate``, to the bit."""

import pytest
import torch
from oracles import PROCESSES

from evaluation import Generated, Parts, generate, generate_together
from samplers import get_sampler

SDE = PROCESSES["vp"]
OPTIONS = {"batch_size": 4, "seed": 3, "progress": False}


class Drawing:
    """Batches of an adaptive method, whose steps are those of the batch; it counts them."""

    def __init__(self):
        self.sampler, self.calls = get_sampler("ode", rtol=0.1, atol=0.1), []

    def __call__(self, first, size):
        self.calls.append((first, size))
        return generate(self.sampler, SDE, self.score, (3,), size, first=first, **OPTIONS)

    @staticmethod
    def score(x, t):
        return -x * (1 + x.square())


def assert_same(drawn, expected):
    assert torch.equal(drawn.x, expected.x)
    assert drawn.nfe == expected.nfe


@pytest.fixture(scope="module")
def whole():
    drawing = Drawing()
    return generate(drawing.sampler, SDE, drawing.score, (3,), 14, **OPTIONS)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_they_are_those_of_one_call(tmp_path, whole, count):
    for rank in reversed(range(count)):
        drawing = Drawing()
        result = generate_together(
            drawing, 14, batch_size=4, parts=Parts(tmp_path / "parts"), rank=rank, world_size=count
        )
        assert (result is None) == (rank > 0)
        assert drawing.calls == [(0, 4), (4, 4), (8, 4), (12, 2)][rank::count]
    assert_same(result, whole)


def test_a_damaged_batch_is_drawn_again(tmp_path, whole):
    parts, drawing = Parts(tmp_path / "parts"), Drawing()
    generate_together(drawing, 14, batch_size=4, parts=parts)
    second = sorted(parts.folder.iterdir())[1]
    second.write_bytes(second.read_bytes()[:-20])
    drawing.calls.clear()
    assert_same(generate_together(drawing, 14, batch_size=4, parts=Parts(parts.folder)), whole)
    assert drawing.calls == [(4, 4)]


def test_the_first_batch_can_be_watched_again(tmp_path, whole):
    parts, drawing = Parts(tmp_path / "parts"), Drawing()
    for _ in range(2):
        assert_same(generate_together(drawing, 14, batch_size=4, parts=parts, first_again=True), whole)
    assert drawing.calls == [(0, 4), (4, 4), (8, 4), (12, 2), (0, 4)]


def test_the_evaluations_are_those_of_the_dearest_batch(tmp_path):
    def draw(first, size):
        return Generated(torch.arange(first, first + size).float(), 10 - first)

    result = generate_together(draw, 5, batch_size=2, parts=Parts(tmp_path / "parts"))
    assert (result.x.tolist(), result.nfe) == ([0, 1, 2, 3, 4], 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"rank": 2, "world_size": 2}, "got rank=2, world_size=2"),
        ({"rank": -1}, "got rank=-1, world_size=1"),
    ],
)
def test_numbers_that_make_no_sense(tmp_path, changes, message):
    options = {"n": 3, "batch_size": 2, "parts": Parts(tmp_path / "parts")} | changes
    with pytest.raises(ValueError, match=message):
        generate_together(Drawing(), **options)
