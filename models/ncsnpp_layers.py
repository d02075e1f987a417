"""What NCSN++ has beside DDPM (arXiv 2011.13456, appendix H): Fourier embedding, and learned resampling."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.checkpointing import Block
from models.resample import FIRDownConv, Resample


class FourierEmbedding(nn.Module):
    """sin and cos of 2 pi w c_noise with fixed random frequencies w ~ N(0, scale^2) (arXiv 2006.10739)."""

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(scale * torch.randn(dim), requires_grad=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        """(B,) -> (B, 2 dim)."""
        angles = 2 * math.pi * c_noise[:, None].to(self.frequencies) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)


class ConvDown(nn.Module):
    """DDPM's halving: a strided 3x3 convolution, padded below and on the right only."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / 2, W / 2)."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class ConvUp(Block):
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
