"""The arithmetic of bfloat16 units, on a machine that has none: at the speed of float32, not that of its bfloat16.

A unit multiplies bfloat16 numbers exactly, adds the products up in float32, and rounds the sum to bfloat16. So products
of bfloat16 tensors are done here in float32, which holds each of them exactly, and their results rounded. Attention is
done likewise as a whole: its weights between the two products stay in float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ATEN = torch.ops.aten
PRODUCTS = {
    ATEN.convolution.default,
    ATEN.convolution_backward.default,
    ATEN.mm.default,
    ATEN.bmm.default,
    ATEN.addmm.default,
    ATEN.baddbmm.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


class RoundedProducts(TorchDispatchMode):
    """A context in which products of bfloat16 tensors are computed in float32 and rounded once.

    Attributes:
        count: products so far, so that a caller sees that there were some.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if op not in PRODUCTS or not any(_is_low(value) for value in args):
            return op(*args, **kwargs)
        self.count += 1
        wide = _each(args, _is_low, torch.Tensor.float)
        results = op(*wide, **kwargs)
        log_sums = results[1] if op is ATEN._scaled_dot_product_flash_attention_for_cpu.default else None
        return _each(
            results, lambda value: value is not log_sums and value.dtype == torch.float32, torch.Tensor.bfloat16
        )


def _is_low(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def _each(values: Any, wanted: Callable[[torch.Tensor], bool], change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return tree_map_only(torch.Tensor, lambda value: change(value) if wanted(value) else value, values)
