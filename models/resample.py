"""Doubling and halving the resolution of feature maps: nearest and mean, or by a FIR filter (arXiv 1904.11486).

With the normalised separable filter K = k^T k / (sum k)^2 and zeros beyond the border,

    downsample: keep every second pixel of x * K
    upsample:   put zeros between the pixels, then filter by 4 K, which keeps the mean.

This is StyleGAN2's resampling (arXiv 1912.04958) as depthwise convolutions; nothing needs to be compiled.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Resample(nn.Module):
    """Double ("up") or halve ("down") the resolution of (B, C, H, W).

    Args:
        direction: "up" or "down".
        kernel: taps k of the FIR filter, such as (1, 3, 3, 1); None for nearest ("up") and 2x2 means ("down").
    """

    taps: Tensor | None

    def __init__(self, direction: str, kernel: Sequence[float] | None = None) -> None:
        super().__init__()
        self.direction = direction
        taps = None
        if kernel is not None:
            line = torch.tensor(kernel, dtype=torch.float32)
            taps = torch.outer(line, line) / line.sum() ** 2
        self.register_buffer("taps", taps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W) or (B, C, H / 2, W / 2)."""
        up = self.direction == "up"
        if self.taps is None:
            return functional.interpolate(x, scale_factor=2.0, mode="nearest") if up else functional.avg_pool2d(x, 2)
        channels, excess = x.shape[1], len(self.taps) - 2  # taps beyond the two that a factor of 2 needs
        before, after = (excess + 1) // 2, excess // 2
        if up:
            batch, _, height, width = x.shape
            x = functional.pad(x.reshape(batch, channels, height, 1, width, 1), (0, 1, 0, 0, 0, 1))
            x = x.reshape(batch, channels, 2 * height, 2 * width)
            before += 1
        weight = self.taps.flip(0, 1).to(x).expand(channels, 1, -1, -1)
        x = functional.pad(x, (before, after, before, after))
        return functional.conv2d(x, 4 * weight if up else weight, stride=1 if up else 2, groups=channels)


class FIRDownConv(nn.Module):
    """Filter, then a strided 3x3 convolution without padding of its own: one halving that learns its weights.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: taps of the filter.
    """

    taps: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[float]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)
        line = torch.tensor(kernel, dtype=torch.float32)
        self.register_buffer("taps", torch.outer(line, line) / line.sum() ** 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / 2, W / 2)."""
        excess = len(self.taps) - 2 + 2  # of the filter and of the convolution
        before, after = (excess + 1) // 2, excess // 2
        weight = self.taps.flip(0, 1).to(x).expand(x.shape[1], 1, -1, -1)
        x = functional.conv2d(functional.pad(x, (before, after, before, after)), weight, groups=x.shape[1])
        return self.conv(x)
