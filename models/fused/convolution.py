"""A 3x3 convolution of few pixels, whose gradient for the weights is one matrix product (im2col, arXiv 1410.0759).

    dw[o, i, j, c] = sum over samples n and pixels p of dy[n, o, p] x[n, c, p + (i - 1, j - 1)]

For a CPU with matrix units (AMX), on which oneDNN's own is slow at 8x8 and 4x4 pixels. A row of the product's second
factor is what the kernel sees around a pixel, nine times the image: with more pixels these copies cost what is gained.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.fused.library import switched_off

PIXELS = 64
"""The most of which the product pays."""


def convolution(x: Tensor, conv: nn.Conv2d, bias: Tensor | None) -> Tensor:
    """The convolution of images (B, C, H, W), which pads by zeros.

    Args:
        x: images.
        conv: the convolution, with its weights.
        bias: its own, or none.
    """
    if matrix_units() and pays(x, conv):
        return FewPixels.apply(x, conv.weight, bias)
    if bias is conv.bias:
        return conv(x)
    return functional.conv2d(x, conv.weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


@cache
def matrix_units() -> bool:
    """Whether this processor has them, and our own way is wanted."""
    return not switched_off() and getattr(torch.cpu, "_is_amx_tile_supported", bool)()


def pays(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether these are few pixels in bfloat16 on a CPU, of a convolution that ``FewPixels`` computes and trains."""
    return (
        x.device.type == "cpu"
        and x.dtype == conv.weight.dtype == torch.bfloat16
        and x.ndim == 4
        and x.shape[2] * x.shape[3] <= PIXELS
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
        and conv.weight.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not any(map(torch._C._functorch.is_functorch_wrapped_tensor, (x, conv.weight)))
    )


class FewPixels(torch.autograd.Function):
    """(x, weight (O, C, 3, 3), bias (O,) or None) -> the convolution with one pixel of zeros around."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution itself, by PyTorch."""
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of (x, weight, bias)."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        dbias = dy.sum((0, 2, 3)) if of_bias else None
        if torch.is_grad_enabled():  # a gradient that is itself differentiated
            y = functional.conv2d(x, weight, padding=1)
            needed = [value for value, wanted in ((x, of_x), (weight, of_weight)) if wanted]
            found = iter(torch.autograd.grad(y, needed, dy, create_graph=True))
            return next(found) if of_x else None, next(found) if of_weight else None, dbias
        dx = input_gradient(x, weight, dy) if of_x else None
        return dx, weight_gradient(x, dy) if of_weight else None, dbias


def input_gradient(x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
    """(B, C, H, W), by PyTorch; ``torch.nn.grad.conv2d_input`` would make an image in place of x, in another layout."""
    stride = padding = dilation = [1, 1]
    plain = (False, [0, 0], 1)  # not transposed, padding of the output, groups
    wanted = [True, False, False]
    return torch.ops.aten.convolution_backward(dy, x, weight, None, stride, padding, dilation, *plain, wanted)[0]


def weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """(O, C, 3, 3), of images x (B, C, H, W) and the gradient dy (B, O, H, W) of what the convolution makes of them."""
    channels, out, pixels = x.shape[1], dy.shape[1], x.shape[0] * x.shape[2] * x.shape[3]
    around = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (B, H + 2, W + 2, C)
    seen = around.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)  # (B, H, W, 3, 3, C)
    rows = dy.permute(0, 2, 3, 1).reshape(pixels, out)
    product = rows.T @ seen.reshape(pixels, 9 * channels)
    return product.reshape(out, 3, 3, channels).permute(0, 3, 1, 2)
