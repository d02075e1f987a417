"""ADM, the U-Net of guided diffusion (arXiv 2105.05233), and its elder sibling of improved diffusion (2102.09672).

Against DDPM's: the embedding scales and shifts a normalisation, attention has several heads, resolutions may change
inside residual blocks, and a second half of the output may interpolate the variance of a discrete chain.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from models.checkpointing import Block
from models.fused.norm_silu import norm_silu
from models.fused.residual import bias_of, residual, unbiased
from models.layers import ConditionEmbedding, Conditions, SelfAttention, concatenate, sinusoidal_embedding, zero
from models.resample import Resample


def _norm(channels: int) -> nn.GroupNorm:
    """32 groups, as published; below 64 channels a group of one loses what is added to it."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


class ADMBlock(Block):
    """shortcut(x) + conv(drop(act((1 + scale) norm(conv(resample(act(norm(x))))) + shift))).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        embedding: width of the condition embedding, which gives scale and shift.
        dropout: probability.
        scale_shift: whether it does; else it is added before the normalisation.
        resample: "up", "down" or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = nn.Identity() if resample is None else Resample(resample)
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, out_channels * (2 if scale_shift else 1))
        self.norm2 = _norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, in_channels, H, W), (B, embedding) -> (B, out_channels, H', W')."""
        h = unbiased(self.conv1, self.resample(norm_silu(x, self.norm1)))
        told, bias = self.modulate(functional.silu(embedding)), bias_of(self.conv1)
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            added = bias.expand(len(h), -1)
            h = norm_silu(h, self.norm2, added=added, scale=scale, shift=shift, dropout=self.dropout)
        else:
            h = norm_silu(h, self.norm2, added=told + bias, dropout=self.dropout)
        return residual(self.resample(x), self.shortcut, h, self.conv2)


class Change(Block):
    """A change of resolution between blocks: a strided convolution, or nearest and a convolution."""

    def __init__(self, direction: str, channels: int) -> None:
        super().__init__()
        down = direction == "down"
        self.resample = nn.Identity() if down else Resample("up")
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> half or double the resolution."""
        return self.conv(self.resample(x))


class ADM(nn.Module):
    """Time-conditioned U-Net F(x, c_noise, y), c_noise in 0 .. 999.

    Args:
        in_channels: channels of the image; the output has as many.
        image_size: resolution, which places the attention.
        channels: width of the first level.
        channel_mult: width of each level, in multiples of ``channels``.
        res_blocks: residual blocks in each level of the encoder (the decoder has one more).
        attention_resolutions: resolutions with self-attention.
        heads: attention heads; used where ``head_channels`` is None.
        head_channels: channels of a head.
        dropout: probability, in every residual block.
        num_classes: number of class labels; 0 for none.
        num_attributes: length of label vectors, in place of classes; 0 for none.
        augment_dims: numbers that tell how the data were augmented; 0 for none.
        scale_shift: the embedding scales and shifts; else it is added.
        resample_in_blocks: resolutions change inside residual blocks.
        learned_variance: the network has 2 in_channels outputs, of which ``forward`` gives the first half.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 64,
        *,
        channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        res_blocks: int = 3,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        heads: int = 4,
        head_channels: int | None = None,
        dropout: float = 0.1,
        num_classes: int = 0,
        num_attributes: int = 0,
        augment_dims: int = 0,
        scale_shift: bool = True,
        resample_in_blocks: bool = False,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        if not channel_mult or image_size % 2 ** (len(channel_mult) - 1):
            raise ValueError(
                f"an image of size {image_size} cannot be halved {len(channel_mult) - 1} times; use fewer levels"
            )
        self.in_channels = in_channels
        wide_embedding = 4 * channels

        def res(wide_in: int, wide_out: int, resample: str | None = None) -> ADMBlock:
            return ADMBlock(
                wide_in, wide_out, wide_embedding, dropout=dropout, scale_shift=scale_shift, resample=resample
            )

        def attention(wide: int) -> SelfAttention:
            return SelfAttention(wide, heads, _norm, head_channels=head_channels)

        def change(direction: str, wide: int) -> nn.Module:
            return res(wide, wide, direction) if resample_in_blocks else Change(direction, wide)

        waves = partial(sinusoidal_embedding, dim=channels, cosines_first=True)
        labels = Conditions(num_classes, num_attributes, augment_dims)
        self.embed = ConditionEmbedding(channels, wide_embedding, labels, waves)
        widths = [round(channels * mult) for mult in channel_mult]
        wide, size = widths[0], image_size
        self.encoder = nn.ModuleList([nn.ModuleList([nn.Conv2d(in_channels, wide, 3, padding=1)])])
        skips = [wide]
        for level, width in enumerate(widths):
            for _ in range(res_blocks):
                parts: list[nn.Module] = [res(wide, width)]
                wide = width
                parts += [attention(wide)] if size in attention_resolutions else []
                self.encoder.append(nn.ModuleList(parts))
                skips.append(wide)
            if level < len(widths) - 1:
                self.encoder.append(nn.ModuleList([change("down", wide)]))
                skips.append(wide)
                size //= 2
        self.middle = nn.ModuleList([res(wide, wide), attention(wide), res(wide, wide)])
        self.decoder = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for number in range(res_blocks + 1):
                parts = [res(wide + skips.pop(), width)]
                wide = width
                parts += [attention(wide)] if size in attention_resolutions else []
                if level > 0 and number == res_blocks:
                    parts.append(change("up", wide))
                    size *= 2
                self.decoder.append(nn.ModuleList(parts))
        self.norm = _norm(wide)
        self.head = zero(nn.Conv2d(wide, in_channels * (2 if learned_variance else 1), 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Predict F of x's shape.

        Args:
            x: images (B, C, H, W).
            c_noise: noise levels (B,).
            y: class labels (B,) or attributes (B, num_attributes), int64, -1 for unknown; None for nothing known.
            augment: how the data were augmented (B, augment_dims); None for not at all.
        """
        return self.outputs(x, c_noise, y, augment)[:, : self.in_channels]

    def outputs(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """All outputs: F, and the interpolation of the variance where it is learned."""
        embedding = self.embed(c_noise, y, augment)
        skips = []
        for parts in self.encoder:
            x = _run(parts, x, embedding)
            skips.append(x)
        x = _run(self.middle, x, embedding)
        for parts in self.decoder:
            x = _run(parts, concatenate(x, skips.pop()), embedding)
        return self.head(norm_silu(x, self.norm))


def _run(parts: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
    for part in cast(nn.ModuleList, parts):
        x = part(x, embedding) if isinstance(part, ADMBlock) else part(x)
    return x
