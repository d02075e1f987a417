"""Floating-point operations of training on one sample, counted without computing anything."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

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
    with sdpa_kernel(SDPBackend.MATH), Operations() as counted:  # attention is its two products there
        eps = ghost.eps(x, torch.empty(1, device="meta"))
        forward = counted.total
        eps.sum().backward()
    return Flops(forward, counted.total - forward)


class Operations(TorchDispatchMode):
    """Adds up what is computed in its context, by the formulas of ``torch.utils.flop_counter``.

    That module's own mode fails in ``autograd.grad``, and looks into every operation that has no formula.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # here, because with triton it takes half a second to import

        super().__init__()
        self.total = 0
        self._formulas = flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = _NORMS[func](*args) if func in _NORMS and args[0].is_meta else func(*args, **kwargs)
        formula = self._formulas.get(func.overloadpacket)
        self.total += formula(*args, **kwargs, out_val=out) if formula else 0
        return out


def _norm(x: Tensor, gain: Any, offset: Any, n: int, c: int, size: int, groups: int, eps: float) -> tuple[Tensor, ...]:
    return torch.empty_like(x), x.new_empty(n, groups), x.new_empty(n, groups)


def _norm_gradient(
    dy: Tensor, x: Tensor, mean: Any, rstd: Any, gain: Any, n: int, c: int, *rest: Any
) -> tuple[Tensor, ...]:
    return torch.empty_like(x), x.new_empty(c), x.new_empty(c)


_NORMS: dict[Any, Callable[..., tuple[Tensor, ...]]] = {
    torch.ops.aten.native_group_norm.default: _norm,
    torch.ops.aten.native_group_norm_backward.default: _norm_gradient,
}
"""Shapes of what the meta device would take apart into a dozen operations, and most of the time."""


def quantity(value: float, unit: str) -> str:
    """Three digits and a prefix: 1.24e10 "FLOP" is "12.4 GFLOP"."""
    thousands = sum(value >= 999.5 * 1000**power for power in range(5))
    return f"{value / 1000**thousands:.3g} {' kMGTP'[thousands].strip()}{unit}"
