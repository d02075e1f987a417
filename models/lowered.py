"""A frozen network's weights in the precision of its products, so that no evaluation converts them again."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from models.layers import ConditionEmbedding


class Lowered:
    """Copies of a network whose convolutions and linear maps hold bfloat16 weights; the rest is shared with it.

    Autocast converts float32 weights at every evaluation: of the 35.7 M parameters of DDPM's network that is 210 MB of
    memory traffic each time. The copy follows the weights: what has changed is converted anew. The embedding of the
    noise level stays in float32.
    """

    def __init__(self) -> None:
        self._source: nn.Module | None = None
        self._net = nn.Module()
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._places: list[int] = []
        self._versions: list[int] = []

    def of(self, net: nn.Module) -> nn.Module:
        """The copy of ``net``, whose weights must not want a gradient."""
        if self._source is not net or self._places != [p.data_ptr() for p in net.parameters()]:
            self._net, self._pairs = lowered(net)
            self._net.requires_grad_(False)
            self._source, self._places = net, [p.data_ptr() for p in net.parameters()]
        elif self._versions != [p._version for p, _ in self._pairs]:
            with torch.no_grad():
                for p, own in self._pairs:
                    own.copy_(p)
        self._versions = [p._version for p, _ in self._pairs]
        return self._net.train(net.training) if self._net.training != net.training else self._net

    def __deepcopy__(self, memo: dict[int, Any]) -> "Lowered":
        return Lowered()


def lowered(net: nn.Module) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A copy whose products have weights in bfloat16, and the pairs (weight, its copy); all else is shared."""
    weights = [module.weight for module in _products(net)]
    shared = {id(value): value for value in (*net.parameters(), *net.buffers())}
    own = {id(p): nn.Parameter(p.detach().bfloat16(), p.requires_grad) for p in weights}
    return copy.deepcopy(net, shared | own) if own else net, [(p, own[id(p)]) for p in weights]


def _products(net: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The convolutions and linear maps that autocast would run in bfloat16."""
    kept = {id(part) for module in net.modules() if isinstance(module, ConditionEmbedding) for part in module.modules()}
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear) and id(m) not in kept]
