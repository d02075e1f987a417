"""Floating-point operations of training on one sample, counted without computing anything."""

import copy
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import ScoreModel, recompute_blocks


class Flops(NamedTuple):
    """Operations for one sample: of the network, and of the gradient of its weights."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Of both."""
        return self.forward + self.backward


def training_flops(model: ScoreModel, shape: tuple[int, ...]) -> Flops:
    """Run the network and its gradient on the meta device, which has shapes but no data, and count.

    Counted are the products of matrices, attention and convolutions, each multiplication and each addition as one;
    what only moves memory (normalisations, activations, the optimizer) is not. Nothing that is computed a second time
    to save memory counts: these are the operations of the model, not of the machine.

    Args:
        model: the score model.
        shape: of one sample.
    """
    ghost = copy.deepcopy(model).to("meta").train()
    ghost.precision = "float32"
    recompute_blocks(ghost.net, False)
    x = torch.empty(1, *shape, device="meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        eps = ghost.eps(x, torch.empty(1, device="meta"))
        forward = counter.get_total_flops()
        eps.sum().backward()
    return Flops(forward, counter.get_total_flops() - forward)


def quantity(value: float, unit: str) -> str:
    """Three digits and a prefix: 1.24e10 "FLOP" is "12.4 GFLOP"."""
    thousands = sum(value >= 999.5 * 1000**power for power in range(5))
    return f"{value / 1000**thousands:.3g} {' kMGTP'[thousands].strip()}{unit}"
