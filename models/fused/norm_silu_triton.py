"""The kernel of norm_silu.py for GPUs: the same formulas as norm_silu.cpp, in Triton, compiled when first used.

    y = drop(silu(gain * normalised(x + added) + offset)),  images stored (N, H W, C): channels last

(or without the SiLU). Three launches each way: sums of every block of pixels, their combination to the statistics of a
group, and the result. Sums are taken in one order, so results repeat to the bit. A kernel's arguments are pointers and
numbers, for which Python's types say nothing.
"""
# ruff: noqa: ANN001, ANN202

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Values that a program holds at once."""
PROGRAMS = 1024
"""Programs that fill a GPU: blocks are made as large as still leaves so many."""


@triton.jit
def _moments(x, added, means, squares, pixels, span, C: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):
    """Mean and squared deviations of each channel in a block of pixels."""
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, WIDE)
    inside = c < C
    first = k * span
    last = tl.minimum(first + span, pixels)
    rows_of_sample = x + n * pixels * C
    origin = tl.load(rows_of_sample + first * C + c, mask=inside, other=0.0).to(tl.float32)  # so that nothing cancels
    sums, sums_of_squares = tl.zeros([ROWS, WIDE], tl.float32), tl.zeros([ROWS, WIDE], tl.float32)
    for start in range(first, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & inside[None, :]
        value = tl.load(rows_of_sample + rows[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
        off = tl.where(mask, value - origin[None, :], 0.0)
        sums += off
        sums_of_squares += off * off
    count = (last - first).to(tl.float32)
    mean = tl.sum(sums, 0) / count
    square = tl.sum(sums_of_squares, 0) - count * mean * mean
    mean += origin
    if added is not None:
        mean += tl.load(added + n * C + c, mask=inside, other=0.0)
    at = (n * tl.num_programs(1) + k) * C + c
    tl.store(means + at, mean, mask=inside)
    tl.store(squares + at, square, mask=inside)


@triton.jit
def _statistics(
    means, squares, mean, rstd, pixels, span, blocks, eps, C: tl.constexpr, GROUP: tl.constexpr, BLOCKS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / standard deviation of a group, from those of its blocks (Chan et al. 1983)."""
    n, g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k, c = tl.arange(0, BLOCKS)[:, None], tl.arange(0, WIDE)[None, :]
    mask = (k < blocks) & (c < GROUP)
    count = tl.where(mask, tl.minimum(span, pixels - k * span).to(tl.float32), 0.0)
    at = (n * blocks + k) * C + g * GROUP + c
    m = tl.load(means + at, mask=mask, other=0.0)
    everything = (pixels * GROUP).to(tl.float32)
    middle = tl.sum(tl.sum(count * m, 1), 0) / everything
    off = tl.where(mask, m - middle, 0.0)
    deviations = tl.load(squares + at, mask=mask, other=0.0) + count * off * off
    variance = tl.sum(tl.sum(deviations, 1), 0) / everything
    variance = tl.where(variance < 0, 0.0, variance)  # by rounding; NaN is not hidden
    place = n * tl.num_programs(1) + g
    tl.store(mean + place, middle)
    tl.store(rstd + place, 1 / tl.sqrt(variance + eps))


@triton.jit
def _channels(
    added, gain, offset, gain_row, offset_row, mean, rstd, n, c, inside, C: tl.constexpr, GROUP: tl.constexpr
):
    """(scale, shift, gain, offset) of each channel: normalised = scale x + shift."""
    group = n * (C // GROUP) + c // GROUP
    scale = tl.load(rstd + group, mask=inside, other=0.0)
    middle = tl.load(mean + group, mask=inside, other=0.0)
    if added is not None:
        middle -= tl.load(added + n * C + c, mask=inside, other=0.0)
    a = tl.load(gain + n * gain_row + c, mask=inside, other=0.0)
    b = tl.load(offset + n * offset_row + c, mask=inside, other=0.0)
    return scale[None, :], (-middle * scale)[None, :], a[None, :], b[None, :]


@triton.jit
def _forward(
    x, added, gain, offset, gain_row, offset_row, noise, mean, rstd, y, drop, kept, pixels, span, C: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, WIDE)
    inside = c < C
    scale, shift, a, b = _channels(added, gain, offset, gain_row, offset_row, mean, rstd, n, c, inside, C, GROUP)
    slope, start_at = a * scale, a * shift + b
    last = tl.minimum((k + 1) * span, pixels)
    for start in range(k * span, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & inside[None, :]
        at = (n * pixels + rows)[:, None] * C + c[None, :]
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * slope + start_at
        out = v * tl.sigmoid(v) if SILU else v
        if noise is not None:
            out = tl.where(tl.load(noise + at, mask=mask, other=0).to(tl.int32) >= drop, out * kept, 0.0)
        tl.store(y + at, out, mask=mask)


@triton.jit
def _row_gradient(x, dy, noise, at, mask, drop, kept, scale, shift, a, b, SILU: tl.constexpr):
    """The normalised x, and dv = dy drop'(.) silu'(v) with v = gain x + offset."""
    normal = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * scale + shift
    dv = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        v = a * normal + b
        sigmoid = tl.sigmoid(v)
        dv *= sigmoid * (1 + v * (1 - sigmoid))
    if noise is not None:
        dv = tl.where(tl.load(noise + at, mask=mask, other=0).to(tl.int32) >= drop, dv * kept, 0.0)
    return tl.where(mask, normal, 0.0), tl.where(mask, dv, 0.0)


@triton.jit
def _gradient_sums(
    x, added, gain, offset, gain_row, offset_row, noise, mean, rstd, dy, sums, drop, kept, pixels, span,
    C: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Over a block of pixels, for each channel: of dv, of dv times the normalised x, and of the latter."""
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, WIDE)
    inside = c < C
    scale, shift, a, b = _channels(added, gain, offset, gain_row, offset_row, mean, rstd, n, c, inside, C, GROUP)
    last = tl.minimum((k + 1) * span, pixels)
    plain, along = tl.zeros([ROWS, WIDE], tl.float32), tl.zeros([ROWS, WIDE], tl.float32)
    normals = tl.zeros([ROWS, WIDE], tl.float32)
    for start in range(k * span, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & inside[None, :]
        at = (n * pixels + rows)[:, None] * C + c[None, :]
        normal, dv = _row_gradient(x, dy, noise, at, mask, drop, kept, scale, shift, a, b, SILU)
        plain += dv
        along += dv * normal
        normals += normal
    at = ((n * tl.num_programs(1) + k) * 3) * C + c
    tl.store(sums + at, tl.sum(plain, 0), mask=inside)
    tl.store(sums + at + C, tl.sum(along, 0), mask=inside)
    tl.store(sums + at + 2 * C, tl.sum(normals, 0), mask=inside)


@triton.jit
def _gradient_statistics(
    sums, gain, gain_row, rstd, shares, dgain, doffset, dadded, pixels, blocks, C: tl.constexpr, GROUP: tl.constexpr,
    BLOCKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients of gain, offset and added, and what each group takes from the gradient of x."""
    n, g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k, wide = tl.arange(0, BLOCKS)[:, None], tl.arange(0, WIDE)
    mask = (k < blocks) & (wide < GROUP)[None, :]
    at = ((n * blocks + k) * 3) * C + g * GROUP + wide[None, :]
    plain = tl.sum(tl.load(sums + at, mask=mask, other=0.0), 0)
    along = tl.sum(tl.load(sums + at + C, mask=mask, other=0.0), 0)
    own = n * C + g * GROUP + wide
    inside = wide < GROUP
    a = tl.load(gain + n * gain_row + g * GROUP + wide, mask=inside, other=0.0)
    count = (pixels * GROUP).to(tl.float32)
    place = n * tl.num_programs(1) + g
    one, two = tl.sum(a * plain, 0) / count, tl.sum(a * along, 0) / count
    tl.store(shares + 2 * place, one)
    tl.store(shares + 2 * place + 1, two)
    tl.store(doffset + own, plain, mask=inside)
    tl.store(dgain + own, along, mask=inside)
    if dadded is not None:
        normals = tl.sum(tl.load(sums + at + 2 * C, mask=mask, other=0.0), 0)
        through = tl.load(rstd + place) * (a * plain - pixels * one - two * normals)
        tl.store(dadded + own, through, mask=inside)


@triton.jit
def _gradient(
    x, added, gain, offset, gain_row, offset_row, noise, mean, rstd, dy, shares, dx, drop, kept, pixels, span,
    C: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, WIDE)
    inside = c < C
    scale, shift, a, b = _channels(added, gain, offset, gain_row, offset_row, mean, rstd, n, c, inside, C, GROUP)
    group = n * (C // GROUP) + c // GROUP
    one = tl.load(shares + 2 * group, mask=inside, other=0.0)[None, :]
    two = tl.load(shares + 2 * group + 1, mask=inside, other=0.0)[None, :]
    last = tl.minimum((k + 1) * span, pixels)
    for start in range(k * span, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & inside[None, :]
        at = (n * pixels + rows)[:, None] * C + c[None, :]
        normal, dv = _row_gradient(x, dy, noise, at, mask, drop, kept, scale, shift, a, b, SILU)
        tl.store(dx + at, scale * (a * dv - one - normal * two), mask=mask)


class _Plan:
    """How images are cut: into blocks of ``span`` pixels, of which a program takes ``rows`` at a time."""

    def __init__(self, x: Tensor, groups: int, silu: bool) -> None:
        self.samples, self.channels, height, width = x.shape
        self.pixels, self.groups = height * width, groups
        self.wide = triton.next_power_of_2(self.channels)
        self.rows = max(1, min(TILE // self.wide, triton.next_power_of_2(self.pixels)))
        most = triton.cdiv(self.pixels, self.rows)
        blocks = min(most, max(1, triton.cdiv(PROGRAMS, self.samples)), 64)
        self.span = self.rows * triton.cdiv(most, blocks)
        self.blocks = triton.cdiv(self.pixels, self.span)
        group = self.channels // groups
        self.by_block = {"C": self.channels, "WIDE": self.wide, "ROWS": self.rows, "num_warps": 8}
        self.by_group = {
            "C": self.channels,
            "GROUP": group,
            "BLOCKS": triton.next_power_of_2(self.blocks),
            "WIDE": triton.next_power_of_2(group),
            "num_warps": 1,
        }
        self.grid, self.grid_of_groups = (self.samples, self.blocks), (self.samples, groups)
        self.group = {"GROUP": group, "SILU": silu}


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
    plan = _Plan(x, groups, silu)
    mean, rstd = x.new_empty(2, plan.samples * groups, dtype=torch.float32)
    means, squares = x.new_empty(2, plan.samples * plan.blocks * plan.channels, dtype=torch.float32)
    y = torch.empty_like(x)
    kept = 256 / (256 - drop)
    with torch.cuda.device_of(x):
        _moments[plan.grid](x, added, means, squares, plan.pixels, plan.span, **plan.by_block)
        _statistics[plan.grid_of_groups](
            means, squares, mean, rstd, plan.pixels, plan.span, plan.blocks, eps, **plan.by_group
        )
        inputs = (x, added, gain, offset, gain.stride(0), offset.stride(0), noise, mean, rstd)
        _forward[plan.grid](*inputs, y, drop, kept, plan.pixels, plan.span, **plan.by_block, **plan.group)
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
    plan = _Plan(x, groups, silu)
    sums = x.new_empty(plan.samples * plan.blocks * 3 * plan.channels, dtype=torch.float32)
    shares = x.new_empty(plan.samples * groups * 2, dtype=torch.float32)
    dx = torch.empty_like(x)
    dgain, doffset = gain.new_empty(2, *gain.shape)
    dadded = None if added is None else torch.empty_like(added)
    kept = 256 / (256 - drop)
    inputs = (x, added, gain, offset, gain.stride(0), offset.stride(0), noise, mean, rstd, dy)
    ends = (plan.pixels, plan.span)
    with torch.cuda.device_of(x):
        _gradient_sums[plan.grid](*inputs, sums, drop, kept, *ends, **plan.by_block, **plan.group)
        _gradient_statistics[plan.grid_of_groups](
            sums, gain, gain.stride(0), rstd, shares, dgain, doffset, dadded, plan.pixels, plan.blocks, **plan.by_group
        )
        _gradient[plan.grid](*inputs, shares, dx, drop, kept, *ends, **plan.by_block, **plan.group)
    return dx, dadded, dgain, doffset
