"""A frozen network's weights in the precision of its products, so that no evaluation converts them again."""

import copy
from typing import Any

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
        self._lowered: list[Tensor] = []
        self._state: list[tuple[int, int]] = []

    def of(self, net: nn.Module) -> nn.Module:
        """The copy of ``net``, whose weights must not want a gradient."""
        if self._source is not net or self._state != _state(self._lowered):
            self._renew(net)
        return self._net.train(net.training) if self._net.training != net.training else self._net

    def _renew(self, net: nn.Module) -> None:
        self._lowered = [p for module in _products(net) for p in module.parameters(recurse=False)]
        shared = {id(value): value for value in (*net.parameters(), *net.buffers())}
        own = {id(p): nn.Parameter(p.detach().bfloat16(), requires_grad=False) for p in self._lowered}
        self._net = copy.deepcopy(net, shared | own) if own else net
        self._source, self._state = net, _state(self._lowered)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Lowered":
        return Lowered()


def _products(net: nn.Module) -> list[nn.Module]:
    """The convolutions and linear maps that autocast would run in bfloat16."""
    kept = {id(part) for module in net.modules() if isinstance(module, ConditionEmbedding) for part in module.modules()}
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear) and id(m) not in kept]


def _state(weights: list[Tensor]) -> list[tuple[int, int]]:
    """What tells that one of them has changed."""
    return [(p.data_ptr(), p._version) for p in weights]
