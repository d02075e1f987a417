"""Independent streams of normal noise, each named by whole numbers and drawn for a whole batch at once, on any device.

torch's generators are one stream each, and seeding one for every image and every place of its path costs more than the
noise. Here number j of a stream is a hash of its place in it: SplitMix64,

    mix(start + (j + 1) golden),   start = mix(seed + mix(name)),

whose whole numbers are the same on every device; two of 32 bits make two normals by Box and Muller's formula.

SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value


def mix(z: Tensor) -> Tensor:
    """SplitMix64's output function, int64 to int64 (products wrap around)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ ((z >> shift) & (_MASK >> shift))) * _signed(factor)
    return z ^ ((z >> 31) & (_MASK >> 31))


def bits(seeds: Tensor, name: Sequence[int | Tensor], n: int) -> Tensor:
    """The first n numbers of each stream, int64 (B, n).

    Args:
        seeds: int64 (B,).
        name: what the stream is for, in whole numbers; a part may be a tensor (B,), one for each seed.
        n: how many.
    """
    code = torch.zeros_like(seeds)
    for part in name:
        step = (part + 1) * _signed(_GOLDEN) if isinstance(part, Tensor) else _signed((part + 1) * _GOLDEN)
        code = mix(code + step)
    start = mix(seeds + code).unsqueeze(1)
    return mix(start + torch.arange(1, n + 1, device=seeds.device) * _signed(_GOLDEN))


def normal(seeds: Tensor, shape: Sequence[int], name: Sequence[int | Tensor]) -> Tensor:
    """Standard normals float32 (B, *shape): those of image k depend on (seeds[k], name) only."""
    size = math.prod(shape)
    word = bits(seeds, name, (size + 1) // 2)
    low, high = word & 0xFFFFFFFF, (word >> 32) & 0xFFFFFFFF
    radius = torch.sqrt(-2 * torch.log((high.float() + 0.5) * 2.0**-32))
    angle = low.float() * (2 * math.pi * 2.0**-32)
    pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return pairs[:, :size].reshape(len(seeds), *shape)
