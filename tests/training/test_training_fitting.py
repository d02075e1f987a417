"""Sizes that fit, against trying them all."""

import pytest
import torch

from models import MLP, ScoreModel
from sde_lib import VPSDE
from training import estimate_memory, fewest_parts, largest_power, really_fits


@pytest.mark.parametrize("most", [1, 2, 5, 8, 100])
@pytest.mark.parametrize("bound", [0, 1, 2, 3, 8, 31, 1000])
def test_the_largest_power_of_two(most, bound):
    powers = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= min(most, bound)]
    assert largest_power(lambda n: n <= bound, most) == max(powers, default=0)


@pytest.mark.parametrize("whole", [1, 2, 7, 12, 96])
@pytest.mark.parametrize("bound", [0, 1, 2, 5, 12, 1000])
def test_the_fewest_equal_parts(whole, bound):
    parts = [n for n in range(1, whole + 1) if whole % n == 0 and whole // n <= bound]
    assert fewest_parts(lambda n: n <= bound, whole) == min(parts, default=0)


def test_few_sizes_are_asked_for():
    asked = []
    largest_power(lambda n: asked.append(n) or n <= 300, 2**20)
    fewest_parts(lambda n: asked.append(n) or n <= 300, 2**20)
    assert len(asked) <= 10


def test_a_cpu_is_not_tried_and_a_gpu_is():
    model = ScoreModel(MLP(2, width=32, blocks=1), VPSDE())
    assert really_fits(model, (2,), estimate_memory(model, (2,), 4)._replace(resident=2**60))
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    model = model.cuda()
    estimate = estimate_memory(model, (2,), 4)
    assert really_fits(model, (2,), estimate)
    assert not really_fits(model, (2,), estimate._replace(resident=2**50))
    assert all(p.grad is None for p in model.parameters())
