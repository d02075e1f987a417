"""The kernel of norm_silu.py for CPUs: norm_silu.cpp, compiled when first used."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from models.fused.library import library

KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def available() -> bool:
    """Whether there is a library, or can be."""
    return library("norm_silu") is not None


def forward(
    x: Tensor,
    added: Tensor | None,
    gain: Tensor,
    offset: Tensor,
    noise: Tensor | None,
    drop: int,
    groups: int,
    silu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result (N, C, H, W), and the mean and 1 / standard deviation of each group (N groups); see ``norm_silu``."""
    mean, rstd = (torch.empty(len(x) * groups, device=x.device) for _ in range(2))
    y = torch.empty_like(x)
    inputs = (added, gain.contiguous(), offset.contiguous(), noise)
    _run("forward", x, inputs, drop, groups, silu, (eps, y, mean, rstd))
    return y, mean, rstd


def backward(
    dy: Tensor,
    x: Tensor,
    added: Tensor | None,
    gain: Tensor,
    offset: Tensor,
    noise: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    drop: int,
    groups: int,
    silu: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of (x, added, gain, offset)."""
    gain, offset = gain.contiguous(), offset.contiguous()
    dx, dgain, doffset = torch.empty_like(x), torch.empty_like(gain), torch.empty_like(gain)
    dadded = None if added is None else torch.empty_like(added)
    results = (mean, rstd, dy, dx, dadded, dgain, doffset)
    _run("backward", x, (added, gain, offset, noise), drop, groups, silu, results)
    return dx, dadded, dgain, doffset


def _run(
    way: str,
    x: Tensor,
    inputs: tuple[Tensor | None, ...],
    drop: int,
    groups: int,
    silu: bool,
    rest: tuple[Tensor | float | None, ...],
) -> None:
    """Call the kernel, unless there are shapes but no data; the order of arguments is that of norm_silu.cpp."""
    if x.is_meta or isinstance(x, FakeTensor):
        return
    count, channels, height, width = x.shape
    sizes = (count, height * width, channels, groups)
    getattr(library("norm_silu"), f"norm_silu_{way}_{KINDS[x.dtype]}")(
        *map(_argument, (x, *inputs)),
        ctypes.c_int(drop),
        *map(ctypes.c_int64, sizes),
        ctypes.c_int(silu),
        *map(_argument, rest),
        ctypes.c_int(torch.get_num_threads()),
    )


def _argument(value: Tensor | float | None) -> Any:
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())
