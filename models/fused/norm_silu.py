"""Normalisation, SiLU and dropout in one: between two convolutions they only move memory, so they do it once.

    drop(silu(gain * groupnorm(x + added) + offset))

The kernels read and write bfloat16 or float32: norm_silu.cpp on a CPU, norm_silu_triton.py on a GPU. They compute in
float32, but for an image in the middle of the gradient, which norm_silu.cpp rounds to the type of x. They serve images
whose channels lie together (channels_last), as they do in the networks here; anything else goes through PyTorch's own
operations, which drop the same values on a CPU.
"""

import importlib.util
from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from models.fused import norm_silu_cpp
from models.fused.library import switched_off

ON_GPU = "norm_silu_triton"


def norm_silu(
    x: Tensor,
    norm: nn.GroupNorm,
    *,
    added: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    dropout: nn.Dropout | None = None,
) -> Tensor:
    """drop(silu((1 + scale) norm(x + added) + shift)), shape of x.

    Args:
        x: images (B, C, H, W).
        norm: the normalisation, with weight and bias.
        added: to every pixel before it, (B, C); None for nothing.
        scale: of the normalised, (B, C); None for nothing.
        shift: of the normalised, (B, C); None for nothing.
        dropout: what drops values; None for nothing. Its probability is rounded to a multiple of 1/256, but not to 0 or
            1, for the random numbers are bytes; under torch.func and torch.compile, and on a GPU without the kernel,
            it is PyTorch's own.
    """
    kernel = _kernel_of_norm(x, norm)
    if kernel is None:
        return _dropped(_plain(x, norm, added, scale, shift), dropout)
    gain: Tensor = norm.weight
    offset: Tensor = norm.bias
    if scale is not None:
        gain, offset = gain * (1 + scale), offset * (1 + scale)
    if shift is not None:
        offset = offset + shift
    rows = x.shape[:2]
    drop = _limit(dropout)
    gain, offset = (value.float().expand(rows) for value in (gain, offset))
    added = None if added is None else added.float().contiguous()
    return _NormSiLU.apply(x, added, gain, offset, drop, norm, kernel, True)


def normalise(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """norm(x) alone, of images (B, C, H, W); PyTorch's own is slow in channels_last, and on a GPU leaves it."""
    kernel = _kernel_of_norm(x, norm)
    if kernel is None:
        return norm(x)
    gain, offset = (value.float().expand(x.shape[:2]) for value in (norm.weight, norm.bias))
    return _NormSiLU.apply(x, None, gain, offset, 0, norm, kernel, False)


def _kernel_of_norm(x: Tensor, norm: nn.GroupNorm) -> ModuleType | None:
    return kernel_for(x, ON_GPU) if norm.affine else None


def _plain(
    x: Tensor,
    norm: nn.GroupNorm,
    added: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    h = norm(x if added is None else x + _pixelwise(added).to(x.dtype))
    h = h if scale is None else (1 + _pixelwise(scale)).to(h.dtype) * h
    h = h if shift is None else h + _pixelwise(shift).to(h.dtype)
    return functional.silu(h)


def _dropped(h: Tensor, dropout: nn.Dropout | None) -> Tensor:
    """As the kernel does it; PyTorch's own on a CPU draws a number for each value, where eight share one here."""
    drop = _limit(dropout)
    if dropout is None or not drop:
        return h
    if h.device.type != "cpu" or _replaced(h):  # there, its random numbers are what these know to deal with
        return dropout(h)
    return _drop(h, _random_bytes(h), drop, like=h)


def _limit(dropout: nn.Dropout | None) -> int:
    """The lowest byte that keeps a value; 0 for no dropout."""
    if dropout is None or not dropout.training or dropout.p == 0:
        return 0
    return min(max(round(256 * dropout.p), 1), 255)


def _drop(values: Tensor, noise: Tensor, drop: int, like: Tensor) -> Tensor:
    """Keep values whose byte reaches ``drop``, times 1 / their share; bytes lie in memory as the values of ``like``."""
    kept = torch.as_strided(noise, like.shape, like.stride()) >= drop
    return torch.where(kept, values, 0) * (256 / (256 - drop))


def _replaced(x: Tensor) -> bool:
    """Whether torch.func or torch.compile has put something in the place of a tensor."""
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)


def kernel_for(x: Tensor, on_gpu: str) -> ModuleType | None:
    """What computes it for images x; None for what torch.func or torch.compile puts in the place of a tensor.

    Args:
        x: images.
        on_gpu: module beside this one with the kernel for GPUs.
    """
    fits = (
        x.dtype in (torch.float32, torch.bfloat16)
        and x.ndim == 4
        and not _replaced(x)
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > 0
    )
    kernel = _kernel_of(x.device.type, on_gpu) if fits else None
    if kernel is not None and isinstance(x, FakeTensor):  # shapes without data, for an estimate of memory
        return norm_silu_cpp if on_gpu == ON_GPU else None
    return kernel


@cache
def _kernel_of(device: str, on_gpu: str) -> ModuleType | None:
    if device == "cpu" and norm_silu_cpp.available():
        return norm_silu_cpp
    if device == "cuda" and not switched_off() and importlib.util.find_spec("triton") is not None:
        return importlib.import_module(f"models.fused.{on_gpu}")
    return None


def _random_bytes(like: Tensor) -> Tensor:
    """A byte for each element, from PyTorch's generator; drawn eight at once, which is several times faster."""
    numbers = torch.empty((like.numel() + 7) // 8, dtype=torch.int64, device=like.device)
    return numbers.random_(-(2**63), None).view(torch.uint8)  # without bounds it would draw 63 bits


class _NormSiLU(torch.autograd.Function):
    """The kernel and its gradient; a gradient that is itself differentiated goes through PyTorch's operations."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        added: Tensor | None,
        gain: Tensor,
        offset: Tensor,
        drop: int,
        norm: nn.GroupNorm,
        kernel: ModuleType,
        silu: bool,
    ) -> Tensor:
        noise = _random_bytes(x) if drop else None
        y, mean, rstd = kernel.forward(x, added, gain, offset, noise, drop, norm.num_groups, silu, norm.eps)
        ctx.save_for_backward(x, added, gain, offset, noise, mean, rstd)
        ctx.drop, ctx.norm, ctx.silu = drop, norm, silu
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # which activation checkpointing hands out only once
        x, added, gain, offset, noise, _, _ = saved
        if torch.is_grad_enabled():
            return *_plain_gradient(dy, x, (added, gain, offset, noise), ctx), *4 * (None,)
        gradient = torch.ops.score_sde.norm_silu_gradient
        dx, dadded, dgain, doffset = gradient(dy, *saved, ctx.drop, ctx.norm.num_groups, ctx.silu)
        return dx, None if added is None else dadded, dgain, doffset, *4 * (None,)


def _gradient(dy: Tensor, x: Tensor, added: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    dy = dy.contiguous(memory_format=torch.channels_last)
    kernel = norm_silu_cpp if x.is_meta else cast(ModuleType, _kernel_of(x.device.type, ON_GPU))  # as in forward
    dx, dadded, dgain, doffset = kernel.backward(dy, x, added, *rest)
    return dx, x.new_empty(0) if dadded is None else dadded, dgain, doffset


_operations = torch.library.Library("score_sde", "FRAGMENT")  # as one of these, the gradient can be batched (vmap)
_operations.define(
    "norm_silu_gradient(Tensor dy, Tensor x, Tensor? added, Tensor gain, Tensor offset, Tensor? noise, Tensor mean, "
    "Tensor rstd, int drop, int groups, bool silu) -> (Tensor, Tensor, Tensor, Tensor)"
)
for key in ("CPU", "CUDA", "Meta"):
    _operations.impl("norm_silu_gradient", _gradient, key)


def _plain_gradient(
    dy: Tensor, x: Tensor, inputs: tuple[Tensor | None, Tensor, Tensor, Tensor | None], ctx: Any
) -> list[Tensor | None]:
    """The gradients of (x, added, gain, offset), by operations that can themselves be differentiated."""
    added, gain, offset, noise = inputs
    h = x.float() if added is None else x.float() + _pixelwise(added)
    h = functional.group_norm(h, ctx.norm.num_groups, eps=ctx.norm.eps)
    y = h * _pixelwise(gain) + _pixelwise(offset)
    y = functional.silu(y) if ctx.silu else y
    if noise is not None:
        y = _drop(y, noise, ctx.drop, like=x)
    needed = [value for value in (x, added, gain, offset) if value is not None and value.requires_grad]
    found = iter(torch.autograd.grad(y, needed, dy.to(y.dtype), create_graph=True))
    return [next(found) if value is not None and value.requires_grad else None for value in (x, added, gain, offset)]


def _pixelwise(values: Tensor) -> Tensor:
    return values[:, :, None, None]
