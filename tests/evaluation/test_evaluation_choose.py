"""The best of several weights, where it is known which that is."""

import pytest
import torch
from torch import nn

from evaluation import HeldOutLoss, choose


class Point(nn.Module):
    """Two weights, and a buffer."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.register_buffer("kept", torch.tensor(7.0))


def one_value(loss):
    return HeldOutLoss(loss, None, (), (), (), (loss,))


def quadratic(model):
    """(w - (3, -1))^2."""
    return one_value(float((model.w.detach() - torch.tensor([3.0, -1.0])).square().sum()))


CANDIDATES = {
    "far": {"w": torch.tensor([0.0, 0.0])},
    "near": {"w": torch.tensor([3.5, -1.0])},
    "side": {"w": torch.tensor([3.0, 1.0])},
    "as near": {"w": torch.tensor([3.0, -0.5])},
}


def test_the_smallest_loss_wins_and_the_model_has_its_weights():
    model, told = Point(), []
    best, losses = choose(model, CANDIDATES, quadratic, lambda *line: told.append(line))
    assert best == "near"  # the first of two that are equal
    assert {name: found.loss for name, found in losses.items()} == {
        "far": 10.0,
        "near": 0.25,
        "side": 4.0,
        "as near": 0.25,
    }
    assert told == list(losses.items())
    assert torch.equal(model.w, CANDIDATES["near"]["w"])
    assert float(model.kept) == 7


def test_the_candidates_stay_as_they_are():
    model = Point()
    choose(model, CANDIDATES, quadratic)
    with torch.no_grad():
        model.w.add_(1)
    assert [weights["w"].tolist() for weights in CANDIDATES.values()] == [[0, 0], [3.5, -1], [3, 1], [3, -0.5]]


@pytest.mark.parametrize("value", [float("nan")])
def test_a_loss_that_is_no_number_is_told(value):
    with pytest.raises(ValueError, match="the held-out loss of far is not a number"):
        choose(Point(), CANDIDATES, lambda model: one_value(value))


def test_nothing_to_choose_from():
    with pytest.raises(ValueError, match="there are no weights to choose from"):
        choose(Point(), {}, quadratic)
