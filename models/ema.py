"""Exponential moving average of a model's weights: what is sampled and scored."""

import copy

import torch
from torch import nn


class EMA:
    """ema <- ema + (1 - d_n) (weights - ema), with d_n = min(decay, (1 + n) / (10 + n)) after n updates.

    The warm-up lets an average that has just begun follow quickly (arXiv 2006.11239's code base and its successors).

    Args:
        model: the model to follow; its copy starts from the present weights.
        decay: limit of d_n, in [0, 1).

    Attributes:
        model: the averaged model, in evaluation mode, ready for use.
        updates: number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay is {decay}; it must lie in [0, 1)")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of ``model``; buffers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for ours, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
