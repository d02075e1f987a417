"""Variational dequantisation: a conditional flow q(x | v) that learns where in its bin the value of a pixel lies.

Uniform dequantisation asks a continuous density p(x) to be flat inside every bin. Noise that is learnt asks less:

    log P(v) >= E_q [log p(x) - log q(x | v)]        Flow++, arXiv:1902.00275; with score SDEs arXiv:2101.09258

holds for every q(x | v) inside the bin of v, with equality where q is p restricted to the bin. Here, w being the
width of a bin, D the number of entries, Phi the normal CDF and u uniform,

    z = Phi^-1(u)  --affine couplings, conditioned on v-->  h,      share = Phi(h),      x = low + w (v + share)
    log q(x | v) = sum (h^2 - z^2) / 2 - log|dh/dz| - D log w

The last map is Phi, not a sigmoid, because it undoes Phi^-1: couplings that start as the identity start q as *exactly*
uniform; and log N(z) - log N(h) is a difference of squares, which stays finite and exact where share rounds to 0 or 1.
"""

import math

import torch
from torch import Tensor, nn

from models.fused.norm_silu import norm_silu
from models.layers import group_norm, zero

BOUND = 2.0
"""Largest |shift| and |log-scale| of one coupling; keeps log q finite in float32 for any weights, up to 32 layers."""


class VariationalDequantizer(nn.Module):
    """The conditional flow q(x | v) of Flow++ (arXiv:1902.00275): reparameterised, and exactly uniform when new.

    A coupling keeps every other entry (a checkerboard over channels, rows and columns, black and white in turn) and
    maps the rest to shift + exp(log-scale) z, both read by a small convolutional network off the kept entries and v.
    The bins are those of ``data.Quantizer`` with the same levels, low and high, to the last bit of their edges.

    Args:
        shape: (C, H, W) of an image, with two entries or more: a coupling needs something to keep.
        levels: number of levels, at least 2; level v occupies [low + w v, low + w (v + 1)).
        low: model value where the first bin begins.
        high: model value where the last bin ends; w = (high - low) / levels.
        channels: width of the networks, at least 4.
        layers: number of couplings, at least 2.
        blocks: residual blocks in the network of each coupling.

    Raises:
        ValueError: an argument is out of range, or the bins are too narrow for float32.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        levels: int,
        low: float,
        high: float,
        channels: int = 32,
        layers: int = 4,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape) < 1 or math.prod(shape) < 2:
            raise ValueError(f"shape must be (C, H, W) with two entries or more, got {tuple(shape)}")
        counts = {"levels": (levels, 2), "channels": (channels, 4), "layers": (layers, 2), "blocks": (blocks, 0)}
        for name, (value, least) in counts.items():
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"a range needs finite low < high, got low={low!r}, high={high!r}")
        self.shape = tuple(shape)
        self.levels, self.low, self.high = levels, low, high
        self.bin_width = (high - low) / levels
        if self._spacing(torch.float32) > 1 / 16:
            raise ValueError(f"float32 has no room inside {levels} bins on [{low}, {high}]; use a wider range")
        self.couplings = nn.ModuleList(Coupling(self.shape, layer % 2, channels, blocks) for layer in range(layers))

    def forward(self, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Place every pixel inside the bin of its level; both results are differentiable in the parameters.

        Args:
            v: integer levels (B, C, H, W).
            u: uniform numbers in [0, 1) of v's shape, float32 or float64; a fixed u gives a fixed x. Anything below
                half a step of ``torch.rand`` (2^-25 in float32; of its values only 0) is read as that half step.

        Returns:
            x (B, C, H, W), model values in u's dtype, which lie in the bin of v also when rounded to float32;
            log q(x | v) (B,) in nats, of x before any rounding.

        Raises:
            TypeError: v does not hold integers, or u is neither float32 nor float64.
            ValueError: wrong shape, a level outside 0 .. levels - 1, or u outside [0, 1).
        """
        start, end = self._bins(v, u, "u")
        _require((u >= 0) & (u < 1), "u must lie in [0, 1)", "draw it by torch.rand")
        z = torch.special.ndtri(u.clamp(min=torch.finfo(u.dtype).eps / 4))
        h, log_det = self._couple(z, v)
        x = start + self.bin_width * _normal_cdf(h)
        return torch.minimum(x, torch.nextafter(end, start)), self._log_q(z, h, log_det)

    def inverse(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The uniform numbers that ``forward`` takes to x, and the density of x.

        A float32 x tells its share of the bin only to about 1e-7 / w, and u inherits that error times du / dshare. An
        x on the edge of its bin, where h would be infinite, is read as a quarter of a float spacing inside it.

        Args:
            x: model values (B, C, H, W), float32 or float64, each in the bin of v.
            v: integer levels (B, C, H, W).

        Returns:
            u (B, C, H, W) in [0, 1); log q(x | v) (B,) in nats.

        Raises:
            TypeError: v does not hold integers, or x is neither float32 nor float64.
            ValueError: wrong shape, a level outside 0 .. levels - 1, or x outside the bin of v.
        """
        start, end = self._bins(v, x, "x")
        _require((x >= start) & (x < end), "x must lie in the bin of v", "take v from Quantizer.decode(x)")
        below_one = 1 - torch.finfo(x.dtype).eps / 2
        margin = self._spacing(x.dtype) / 4
        h = torch.special.ndtri(((x - start) / self.bin_width).clamp(margin, min(1 - margin, below_one)))
        z, log_det = self._couple(h, v, inverse=True)
        return _normal_cdf(z).clamp(max=below_one), self._log_q(z, h, log_det)

    def _log_q(self, z: Tensor, h: Tensor, log_det: Tensor) -> Tensor:
        gauss = (h.square() - z.square()).flatten(1).sum(1) / 2
        return gauss - log_det - math.prod(self.shape) * math.log(self.bin_width)

    def _couple(self, z: Tensor, v: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """All couplings in turn: z -> h, or h -> z with ``inverse``; and log|dh/dz| (B,)."""
        centred = 2 * v.to(next(self.parameters()).dtype) / (self.levels - 1) - 1
        log_det = z.new_zeros(len(z))
        for coupling in reversed(self.couplings) if inverse else self.couplings:
            z, log_scale = coupling(z, centred, inverse=inverse)
            log_det = log_det + log_scale.flatten(1).sum(1)
        return z, log_det

    def _spacing(self, dtype: torch.dtype) -> float:
        """Distance of neighbouring floats at the far end of the range, as a share of a bin."""
        return torch.finfo(dtype).eps / 2 * max(abs(self.low), abs(self.high)) / self.bin_width

    def _bins(self, v: Tensor, values: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Float32 start and end of every level's bin, after checking v and what comes with it."""
        if v.is_floating_point() or v.is_complex() or v.dtype == torch.bool:
            raise TypeError(f"levels v are integers, got a tensor of {v.dtype}; Quantizer.decode(x) gives levels")
        if values.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must be float32 or float64, got {values.dtype}; convert it by {name}.float()")
        if v.shape[1:] != self.shape or values.shape != v.shape:
            raise ValueError(
                f"v and {name} must both be (B, {', '.join(map(str, self.shape))}), got {tuple(v.shape)} and "
                f"{tuple(values.shape)}; build the dequantizer for the shape of the images"
            )
        index = v.long()
        _require(
            (index >= 0) & (index < self.levels),
            f"levels v must lie in 0..{self.levels - 1}",
            "build the dequantizer with the data's number of levels",
        )
        edges = torch.linspace(self.low, self.high, self.levels + 1, dtype=torch.float64).float().to(v.device)
        return edges[index], edges[index + 1]


class Coupling(nn.Module):
    """z -> z exp(log_scale) + shift at one colour of the checkerboard; both functions of the other colour and of v.

    Zero-initialised, so a new coupling is the identity; |shift| and |log_scale| never exceed ``BOUND``.

    Args:
        shape: (C, H, W).
        colour: 0 or 1: the parity of channel + row + column of the entries that are kept.
        channels: width of the network.
        blocks: its residual blocks.
    """

    kept: Tensor

    def __init__(self, shape: tuple[int, ...], colour: int, channels: int, blocks: int) -> None:
        super().__init__()
        parity = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).sum(0) % 2
        self.register_buffer("kept", parity == colour, persistent=False)
        self.net = nn.Sequential(
            nn.Conv2d(2 * shape[0], channels, 3, padding=1),
            *(_Block(channels) for _ in range(blocks)),
            nn.SiLU(),
            zero(nn.Conv2d(channels, 2 * shape[0], 3, padding=1)),
        )

    def forward(self, z: Tensor, centred: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Map z, or undo the map; all (B, C, H, W).

        Args:
            z: the noise; with ``inverse`` the result of the map, whose kept entries are the same.
            centred: the levels, scaled to -1 .. 1, in the dtype of the network.
            inverse: undo the map.

        Returns:
            The other side of the map; and log_scale, whose sum is the map's log|det|.
        """
        shift, log_scale = self._affine(z, centred)
        return (z - shift) * (-log_scale).exp() if inverse else z * log_scale.exp() + shift, log_scale

    def _affine(self, z: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log-scale (B, C, H, W) in z's dtype, zero where z is kept."""
        known = z.masked_fill(~self.kept, 0).to(centred.dtype)
        bounded = BOUND * torch.tanh(self.net(torch.cat([known, centred], 1)).to(z.dtype) / BOUND)
        shift, log_scale = bounded.chunk(2, 1)
        return shift.masked_fill(self.kept, 0), log_scale.masked_fill(self.kept, 0)


class _Block(nn.Module):
    """h + conv(act(norm(conv(act(norm(h)))))), silent when new."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        inner = self.conv1(norm_silu(h, self.norm1))
        return h + self.conv2(norm_silu(inner, self.norm2))


def _normal_cdf(h: Tensor) -> Tensor:
    # torch.special.ndtr loses the whole lower tail in float32: it is 0 below -5.5
    return torch.erfc(h * -math.sqrt(0.5)) / 2


def _require(good: Tensor, demand: str, remedy: str) -> None:
    """Raise ValueError with the number of entries that break the demand (nan does)."""
    bad = good.numel() - int(good.sum())
    if bad:
        raise ValueError(f"{demand}, but {bad} of {good.numel()} entries do not; {remedy}")
