"""Memory that training will need, found without computing anything."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from models import ScoreModel


class MemoryEstimate(NamedTuple):
    """Bytes: what stays (weights, gradient, two Adam moments, averages), and what one batch's backward pass keeps."""

    resident: int
    activations: int

    def __str__(self) -> str:
        total = (self.resident + self.activations) / 2**20
        return (
            f"{total:.0f} MiB: {self.resident / 2**20:.0f} for weights, gradients, optimizer and averages, "
            f"{self.activations / 2**20:.0f} for the activations of a batch in float32"
        )


def estimate_memory(model: ScoreModel, shape: tuple[int, ...], batch_size: int, averages: int = 1) -> MemoryEstimate:
    """Run one loss on the meta device, which has shapes but no data, and add up what autograd would keep.

    Args:
        model: the score model.
        shape: of one sample.
        batch_size: samples in one forward pass.
        averages: moving averages that are kept.
    """
    ghost = copy.deepcopy(model).to("meta").train()
    ghost.precision = "float32"
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    own = {id(p.untyped_storage()) for p in ghost.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # storages, because views of one tensor take its memory once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in own:
            kept[id(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = torch.empty(batch_size, *shape, device="meta")
        ghost.eps(x, torch.empty(batch_size, device="meta"))
    return MemoryEstimate((4 + averages) * weights, sum(storage.nbytes() for storage in kept.values()))
