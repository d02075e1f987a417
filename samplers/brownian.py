"""Brownian paths that can be read at any times: a virtual Brownian tree (arXiv 2001.01328, section 4).

The increment over [0, 1] is drawn first. An interval is halved by the Brownian bridge: given the increment d over
[a, b], the one over [m, b] is

    d (b - m) / (b - a) + sqrt((b - m) (m - a) / (b - a)) z .

The normal z of a halving is a function of (seed, depth, place), so the path is fixed before anybody reads it, and need
not be stored.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.random_streams import normal

LEVELS = 10
"""Depth of the tree for readings downwards: runs of different steps share their path to 2^-10 of the clock. Below, an
interval is cut where it is read, so that the law is exact for any times."""

FINE = 20
"""Depth of the tree for readings at any place; below, the path is taken to be straight."""

_PATH = 0
_CUT = 64  # cuts below the last level have streams from here on
_SAME = 1e-12  # places nearer than this are one: a clock read twice may differ in its last digit


class _Interval(NamedTuple):
    """A stretch [low, high] of the clock, its place in its depth, and the cuts made below the last level."""

    low: float
    high: float
    depth: int
    place: int
    cuts: int
    increment: Tensor


class BrownianPath:
    """W on [0, 1] for each seed, with W(0) = 0.

    Args:
        seeds: one for each path, int64 (B,); the path lies on their device.
        shape: of W at one time, for one seed.
    """

    def __init__(self, seeds: Tensor | Sequence[int], shape: Sequence[int]) -> None:
        self.seeds = torch.as_tensor(seeds, dtype=torch.int64)
        self.shape = tuple(shape)
        self._whole = _Interval(0.0, 1.0, 0, 0, 0, normal(self.seeds, self.shape, (_PATH, 0, 0)))
        self._pending = [self._whole]  # intervals below the place of reading, nearest last; at most one for each level

    def increment(self, high: float, low: float) -> Tensor:
        """W(high) - W(low), float32 (B, *), for 1 >= high >= low >= 0: cheap when high is the last low."""
        if not self._pending or self._pending[-1].high < high - _SAME:
            self._pending = [self._whole]
        if self._pending[-1].high > high + _SAME:
            self._fall(high)
        return self._fall(low)

    def at(self, c: Tensor) -> Tensor:
        """W at a place for each seed (B,), float32 (B, *), by one descent of the tree."""
        c = c.to(device=self.seeds.device, dtype=torch.float64)
        place = torch.zeros_like(self.seeds)
        below, across = torch.zeros_like(self._whole.increment), self._whole.increment
        for depth in range(1, FINE + 1):
            length = 2.0 ** (1 - depth)
            upper = across / 2 + length**0.5 / 2 * normal(self.seeds, self.shape, (_PATH, depth, place))
            right = c >= (place + 0.5) * length
            mask = right.reshape(-1, *[1] * len(self.shape))
            below = torch.where(mask, below + across - upper, below)
            across = torch.where(mask, upper, across - upper)
            place = 2 * place + right
        share = (c * 2.0**FINE - place).reshape(-1, *[1] * len(self.shape))
        return below + share.float() * across

    def _fall(self, c: float) -> Tensor:
        """Increment from the place of reading down to c, which becomes the place of reading."""
        total = torch.zeros_like(self._whole.increment)
        while self._pending and self._pending[-1].high > c:
            top = self._pending.pop()
            if top.low >= c:
                total += top.increment
            else:
                self._pending += self._split(top, c)
        return total

    def _split(self, whole: _Interval, c: float) -> tuple[_Interval, _Interval]:
        """Lower and upper part: halves down to the last level, then cut at c."""
        low, high, depth, place, cuts, increment = whole
        if depth < LEVELS:
            middle, stream = (low + high) / 2, depth + 1
            lower, upper = (depth + 1, 2 * place, 0), (depth + 1, 2 * place + 1, 0)
        else:
            middle, stream = c, _CUT + cuts
            lower, upper = (depth, place, cuts + 1), (depth, place, cuts)
        share = (high - middle) / (high - low)
        z = normal(self.seeds, self.shape, (_PATH, stream, place))
        above = share * increment + ((high - middle) * (1 - share)) ** 0.5 * z
        return _Interval(low, middle, *lower, increment - above), _Interval(middle, high, *upper, above)
