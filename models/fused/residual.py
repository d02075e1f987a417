"""The sum that ends a residual block, with the biases of its two branches: (x + h + bias) scale.

On a GPU a convolution adds its bias in a pass over the images of its own, and sums gradients for it in another, slow
one. Here the biases are added where the branches are, and their gradient is one sum; elsewhere the convolutions add
them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.fused.convolution import convolution
from models.fused.norm_silu import kernel_for


def unbiased(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution without its bias, which is added where a pass over the images is made anyway."""
    return convolution(x, conv, None)


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Its bias, which the convolutions of residual blocks all have."""
    if conv.bias is None:
        raise ValueError(f"{conv} has no bias, which a residual block needs")
    return conv.bias


def residual(x: Tensor, shortcut: nn.Module, h: Tensor, conv: nn.Conv2d, scale: float = 1.0) -> Tensor:
    """(shortcut(x) + conv(h)) scale.

    Args:
        x: what goes past the block (B, C, H, W).
        shortcut: a convolution, or the identity.
        h: what went through it (B, C', H', W').
        conv: its last convolution.
        scale: of the sum.
    """
    kernel = kernel_for(h, "residual_triton") if h.is_cuda else None
    if kernel is None:
        total = shortcut(x) + convolution(h, conv, conv.bias)
        return total if scale == 1 else total * scale
    bias = bias_of(conv)
    if isinstance(shortcut, nn.Conv2d):
        x, bias = unbiased(shortcut, x), bias + bias_of(shortcut)
    else:
        x = shortcut(x)
    return _Residual.apply(x, unbiased(conv, h), bias, scale, kernel)


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, bias: Tensor, scale: float, kernel: Any) -> Tensor:
        x, h = (value.contiguous(memory_format=torch.channels_last) for value in (x, h))
        ctx.scale, ctx.kernel, ctx.dtypes = scale, kernel, (x.dtype, h.dtype, bias.dtype)
        return kernel.forward(x, h, bias, scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_h, of_bias = ctx.dtypes
        dx = dy if ctx.scale == 1 else dy * ctx.scale
        plain = torch.is_grad_enabled() or torch._C._functorch.is_functorch_wrapped_tensor(dx)
        dbias = None
        if ctx.needs_input_grad[2]:
            fits = not plain and dx.is_contiguous(memory_format=torch.channels_last)
            dbias = (ctx.kernel.channel_sums(dx) if fits else dx.float().sum((0, 2, 3))).to(of_bias)
        return dx.to(of_x), dx.to(of_h), dbias, None, None
