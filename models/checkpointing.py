"""Activation checkpointing: a block keeps its input alone, and is computed again in the backward pass.

Of n blocks that keep c bytes inside and b at their input, n b + c are there at once, in place of n c; the price is one
more forward pass, a third of a training step (arXiv 1604.06174).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A part of a network that can be computed again; its class is all that a network has to say.

    The second time dropout drops what it dropped the first time. Nothing is computed again in evaluation mode, without
    gradients, or under torch.func, which knows no such thing.

    Attributes:
        recomputed: whether it is.
    """

    recomputed = False

    def __call__(self, *args: Any) -> Any:
        """As every module's, but for what autograd keeps."""
        if self.recomputed and self.training and torch.is_grad_enabled() and not _transformed():
            return checkpoint(super().__call__, *args, use_reentrant=False, preserve_rng_state=True)
        return super().__call__(*args)


def _transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def recompute_blocks(network: nn.Module, recomputed: bool = True) -> None:
    """Switch activation checkpointing of a network on or off; weights and their names stay as they are."""
    for block in _outermost(network):
        block.recomputed = recomputed


def _outermost(module: nn.Module) -> Iterator[Block]:
    """Blocks that lie in no other."""
    for child in module.children():
        if isinstance(child, Block):
            yield child
        else:
            yield from _outermost(child)
