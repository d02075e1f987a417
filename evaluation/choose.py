"""Of several weights of a model, those with the smallest loss."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from evaluation.heldout import HeldOutLoss
from models import ScoreModel

Loss = Callable[[ScoreModel], HeldOutLoss]


def choose(
    model: ScoreModel,
    candidates: Mapping[str, Mapping[str, Tensor]],
    loss: Loss,
    report: Callable[[str, HeldOutLoss], None] = lambda name, found: None,
) -> tuple[str, dict[str, HeldOutLoss]]:
    """The name of the best candidate, and the loss of each; in the end the model has the weights of the best.

    Args:
        model: takes the weights of one after the other.
        candidates: name -> the weights that differ between them (as ``load_state_dict``); equal losses: the first wins.
        loss: of the model as it is, on held-out data.
        report: called with each name and loss.

    Raises:
        ValueError: there are none, or a loss is not a number.
    """
    if not candidates:
        raise ValueError("there are no weights to choose from")
    losses: dict[str, HeldOutLoss] = {}
    for name, weights in candidates.items():
        _put(model, weights)
        losses[name] = loss(model)
        if math.isnan(losses[name].loss):
            raise ValueError(f"the held-out loss of {name} is not a number")
        report(name, losses[name])
    best = min(losses, key=lambda name: losses[name].loss)
    _put(model, candidates[best])
    return best, losses


@torch.no_grad()
def _put(model: ScoreModel, weights: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    for name, value in weights.items():
        own[name].copy_(value)
