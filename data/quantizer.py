"""Pixel levels and model units: the one place that knows how the two meet.

An image has L integer levels v; the model lives on the interval [low, high], cut into L bins of equal width:

    encode       x = low + (high - low) v / (L - 1)      level -> a point of its bin; 0 -> low, L - 1 -> high
    dequantize   x = low + (high - low) (v + u) / L      level -> uniform in its bin, u ~ U[0, 1)
    decode       v = floor(L (x - low) / (high - low))   the bin that x lies in, clamped to 0 .. L - 1

``decode`` undoes both exactly: all three read the same float32 table of bin edges, so rounding cannot move a value
into the next bin. Under uniform dequantisation the expected log-density of x, plus log of the bin width, is a lower
bound on the log-probability of v (Theis et al., 2015, arXiv:1511.01844).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PLACES_IN_A_BIN = 64
"""Values that float32 must have in a bin, for noise that is nearly uniform there."""


@dataclass(frozen=True)
class Quantizer:
    """The map between ``levels`` integer levels and the interval [low, high].

    Args:
        levels: number of levels, 2 or more.
        low: model value of level 0.
        high: model value of the last level.

    Raises:
        ValueError: an argument is out of range, or the interval is so narrow, or so far from zero, that float32
            cannot tell its levels apart.
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or self.levels < 2:
            raise ValueError(f"levels must be an integer, 2 or more, got {self.levels!r}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range needs finite low < high, got low={self.low!r}, high={self.high!r}")
        float32_spacing = torch.finfo(torch.float32).eps * max(abs(self.low), abs(self.high))
        if self.bin_width < PLACES_IN_A_BIN * float32_spacing:
            raise ValueError(
                f"float32 cannot tell {self.levels} levels apart on [{self.low}, {self.high}] and have "
                f"{PLACES_IN_A_BIN} values in each bin; use fewer levels, or a wider range nearer to 0"
            )

    @property
    def bin_width(self) -> float:
        """Width of one level in model units (2/256 for 256 levels on [-1, 1])."""
        return (self.high - self.low) / self.levels

    @property
    def dtype(self) -> torch.dtype:
        """Of the levels: uint8, or int32 where there are more than 256."""
        return torch.uint8 if self.levels <= 256 else torch.int32

    def encode(self, v: Tensor) -> Tensor:
        """Levels (any shape, integers) to float32 values in [low, high], without noise.

        Raises:
            TypeError: ``v`` does not hold integers.
            ValueError: a level is outside 0 .. levels - 1.
        """
        index, edges = self._index(v), self._edges(v.device)
        points = _spaced(self.low, self.high, self.levels, v.device)
        points[:-1] = torch.minimum(points[:-1], _last_of_bins(edges)[:-1])  # high itself decodes to the last level
        return points[index]

    def dequantize(self, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels (any shape, integers) to float32 values, each uniform in the bin of its level; always below high.

        Raises:
            TypeError: ``v`` does not hold integers.
            ValueError: a level is outside 0 .. levels - 1.
        """
        self._index(v)  # wrong levels cost no draw
        return self.place(v, torch.rand(v.shape, generator=generator, device=v.device, dtype=torch.float32))

    def place(self, v: Tensor, u: Tensor) -> Tensor:
        """Levels to float32 values at the share u of their bin, 0 <= u < 1; they always decode to v.

        Raises:
            TypeError: ``v`` does not hold integers.
            ValueError: a level is outside 0 .. levels - 1.
        """
        index, edges = self._index(v), self._edges(v.device)
        return torch.minimum(edges[index] + self.bin_width * u, _last_of_bins(edges)[index])

    def log_mass(self, v: Tensor, mean: Tensor, std: Tensor | float, *, points: bool = False) -> Tensor:
        """Log of the probability that N(mean, std^2) gives each level: its mass in the cell of v, nats, shape of v.

        The cells fill the line; the outer ones reach to infinity (the discrete decoder of arXiv 2006.11239).

        Args:
            v: levels, integers of any shape.
            mean: model values, shape of v.
            std: standard deviation, a number or a shape that fits v.
            points: cells are cut midway between the points of ``encode``, for models of those points; else they are the
                bins of ``dequantize``.
        """
        index = self._index(v)
        if points:
            encoded = _spaced(self.low, self.high, self.levels, v.device).double()
            inner = (encoded[1:] + encoded[:-1]) / 2
        else:
            inner = self._edges(v.device)[1:-1].double()
        infinity = inner.new_full((1,), math.inf)
        edges = torch.cat([-infinity, inner, infinity])
        std = torch.as_tensor(std, dtype=torch.float64, device=v.device)
        below, above = ((edges[i] - mean.double()) / std for i in (index, index + 1))
        far = below > 0  # the mass is taken from the nearer tail, where it keeps its digits
        below, above = torch.where(far, -above, below), torch.where(far, -below, above)
        upper = torch.special.log_ndtr(above)
        return upper + torch.log(-torch.expm1((torch.special.log_ndtr(below) - upper).clamp(max=-1e-300)))

    def decode(self, x: Tensor) -> Tensor:
        """Model values (any shape, floating; read in float32) to levels; values beyond the range are clamped.

        Raises:
            ValueError: ``x`` holds nan or infinity, which no level stands for.
        """
        bad = x.numel() - int(torch.isfinite(x).sum())
        if bad:
            raise ValueError(
                f"cannot turn values into levels: {bad} of {x.numel()} are not finite (nan or inf); "
                "the sampler or the network that made them has diverged"
            )
        inner_edges = self._edges(x.device)[1:-1]
        return torch.bucketize(x.float().contiguous(), inner_edges, out_int32=True, right=True).to(self.dtype)

    def to_uint8(self, x: Tensor) -> Tensor:
        """Model values to picture values 0 .. 255: ``decode``, then the levels spread evenly over 0 .. 255."""
        v = self.decode(x)
        return v if self.levels == 256 else (v.double() * (255 / (self.levels - 1))).round().to(torch.uint8)

    def _edges(self, device: torch.device) -> Tensor:
        """The levels + 1 edges of the bins; bin v is [edge v, edge v+1)."""
        return _spaced(self.low, self.high, self.levels + 1, device)

    def _index(self, v: Tensor) -> Tensor:
        """Levels as int64 indices, after checking them."""
        if v.is_floating_point() or v.is_complex() or v.dtype == torch.bool:
            raise TypeError(f"levels are integers ({self.dtype}), got a tensor of {v.dtype}; decode takes values")
        index = v.long()
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= self.levels):
            raise ValueError(
                f"levels must lie in 0..{self.levels - 1}, got values from {int(index.min())} to {int(index.max())}"
            )
        return index


def _last_of_bins(edges: Tensor) -> Tensor:
    """The largest float32 value of each bin."""
    return torch.nextafter(edges[1:], edges[:-1])


def _spaced(low: float, high: float, count: int, device: torch.device) -> Tensor:
    """Evenly spaced float32 values, each the correctly rounded one."""
    return torch.linspace(low, high, count, dtype=torch.float64).float().to(device)
