"""The kernels of residual.py: a sum with a bias for each channel, and the gradient of that bias; (N, H W, C) images."""
# ruff: noqa: ANN001, ANN202

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Values that a program holds at once."""
PROGRAMS = 1024
"""Partial sums of each channel."""


@triton.jit
def _sum(x, h, bias, y, scale, pixels, C: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):
    c = tl.arange(0, WIDE)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (rows < pixels)[:, None] & (c < C)[None, :]
    at = rows[:, None] * C + c[None, :]
    one = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    two = tl.load(h + at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(y + at, (one + two + b[None, :]) * scale, mask=mask)


@triton.jit
def _channel_sums(x, sums, pixels, span, C: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):
    k = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDE)
    total = tl.zeros([ROWS, WIDE], tl.float32)
    last = tl.minimum((k + 1) * span, pixels)
    for start in range(k * span, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & (c < C)[None, :]
        total += tl.load(x + rows[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(sums + k * C + c, tl.sum(total, 0), mask=c < C)


def _cut(x: Tensor) -> tuple[int, int, dict[str, int]]:
    """Pixels of all images, how many of them a program takes at once, and what the kernels are compiled for."""
    channels = x.shape[1]
    wide = triton.next_power_of_2(channels)
    rows = max(1, TILE // wide)
    return x.numel() // channels, rows, {"C": channels, "WIDE": wide, "ROWS": rows, "num_warps": 8}


def forward(x: Tensor, h: Tensor, bias: Tensor, scale: float) -> Tensor:
    """(x + h + bias) scale, all (N, C, H, W) but bias (C,); of the wider dtype of x and h."""
    y = torch.empty_like(h, dtype=torch.promote_types(x.dtype, h.dtype))
    pixels, rows, constants = _cut(x)
    with torch.cuda.device_of(x):
        _sum[(triton.cdiv(pixels, rows),)](x, h, bias, y, scale, pixels, **constants)
    return y


def channel_sums(x: Tensor) -> Tensor:
    """Of (N, C, H, W) over all but the channels, (C,), in float32."""
    pixels, rows, constants = _cut(x)
    span = rows * triton.cdiv(triton.cdiv(pixels, rows), PROGRAMS)
    programs = triton.cdiv(pixels, span)
    sums = x.new_empty(programs, x.shape[1], dtype=torch.float32)
    with torch.cuda.device_of(x):
        _channel_sums[(programs,)](x, sums, pixels, span, **constants)
    return sums.sum(0)
