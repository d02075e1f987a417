"""Blocks of NCSN++ and DDPM++ (arXiv 2011.13456, appendix H): residual blocks of DDPM and of BigGAN, resampling."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import Norm, zero
from models.resample import FIRDownConv, Resample


def add(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """X + h, over sqrt 2 where the sum is to keep the variance of its parts (arXiv 1912.04958)."""
    return (x + h) / math.sqrt(2) if rescale else x + h


class FourierEmbedding(nn.Module):
    """sin and cos of 2 pi w c_noise with fixed random frequencies w ~ N(0, scale^2) (arXiv 2006.10739)."""

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(scale * torch.randn(dim), requires_grad=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        """(B,) -> (B, 2 dim)."""
        angles = 2 * math.pi * c_noise[:, None].to(self.frequencies) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)


class ResBlock(nn.Module):
    """shortcut(x) + conv(drop(act(norm(conv(resample(act(norm(x)))) + embedding)))).

    DDPM's block (arXiv 2006.11239) changes no resolution; BigGAN's (arXiv 1809.11096) may, on both its branches.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        embedding: width of the condition embedding.
        norm: its normalisation.
        dropout: probability.
        rescale: divide the sum by sqrt 2.
        resample: "up", "down" or None.
        kernel: FIR filter of the resampling; None for nearest and means.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        norm: Norm,
        dropout: float = 0.0,
        rescale: bool = False,
        resample: str | None = None,
        kernel: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.resample = nn.Identity() if resample is None else Resample(resample, kernel)
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels and resample is None
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, in_channels, H, W), (B, embedding) -> (B, out_channels, H', W')."""
        h = self.conv1(self.resample(functional.silu(self.norm1(x))))
        h = h + self.modulate(functional.silu(embedding))[:, :, None, None]
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        return add(self.shortcut(self.resample(x)), h, self.rescale)


class Attention(nn.Module):
    """x + proj(attention(norm(x))) over the pixels, with one head."""

    def __init__(self, channels: int, *, norm: Norm, rescale: bool = False) -> None:
        super().__init__()
        self.rescale = rescale
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # (B, HW, C)
        h = functional.scaled_dot_product_attention(q, k, v)
        return add(x, self.proj(h.transpose(1, 2).reshape(x.shape)), self.rescale)


class ConvDown(nn.Module):
    """DDPM's halving: a strided 3x3 convolution, padded below and on the right only."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / 2, W / 2)."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class ConvUp(nn.Module):
    """Double the resolution, then a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[float] | None = None) -> None:
        super().__init__()
        self.resample = Resample("up", kernel)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, 2 H, 2 W)."""
        return self.conv(self.resample(x))


def conv_down(in_channels: int, out_channels: int, kernel: Sequence[float] | None) -> nn.Module:
    """A halving that learns, with a filter before it where there is one."""
    return ConvDown(in_channels, out_channels) if kernel is None else FIRDownConv(in_channels, out_channels, kernel)
