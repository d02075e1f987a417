"""The U-Nets of score SDEs: DDPM, DDPM++ and NCSN++ as settings of one network (arXiv 2011.13456, appendix H).

| | block | fir | skip_rescale | progressive_input | embedding | scale_by_sigma | groups |
|---|---|---|---|---|---|---|---|
| DDPM (arXiv 2006.11239) | ddpm | None | False | none | positional | False | 32 |
| DDPM++ | biggan | None | True | none | positional | False | None |
| NCSN++ | biggan | (1, 3, 3, 1) | True | residual | fourier | True | None |

The submodules are made in the order in which the published code base numbers its own.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from models.fused.norm_silu import norm_silu
from models.layers import ConditionEmbedding, Conditions, ResidualBlock, SelfAttention, concatenate, zero
from models.ncsnpp_layers import ConvUp, FourierEmbedding, conv_down
from models.resample import Resample
from sde_lib import lookup, match_dims

BLOCKS = {"ddpm": "resolution changes between blocks", "biggan": "resolution changes inside blocks"}
PROGRESSIVE = {
    "none": "the image enters at the stem and leaves at the head",
    "skip": "a pyramid of images, joined to (input) or summed from (output) every level",
    "residual": "a pyramid of features, convolved at every level",
}
EMBEDDINGS = {"positional": "c_noise in 0 .. 999", "fourier": "c_noise = log sigma"}


class NCSNpp(nn.Module):
    """Time-conditioned U-Net F(x, c_noise).

    Args:
        in_channels: channels of the image; the output has as many.
        image_size: resolution, which places the attention; halved at each level but the last.
        channels: width of the first level.
        channel_mult: width of each level, in multiples of ``channels``.
        res_blocks: residual blocks in each level of the encoder (the decoder has one more).
        attention_resolutions: resolutions with self-attention: after every block of the encoder, and once in the
            decoder.
        dropout: probability, in every residual block.
        block: a key of ``BLOCKS``.
        fir: taps of the filter for resampling; None, or none at all, for nearest and means.
        skip_rescale: divide sums by sqrt 2.
        progressive: growing of the output, a key of ``PROGRESSIVE``.
        progressive_input: growing of the input, likewise.
        combine: how an input pyramid of images joins the features: "sum" or "cat".
        embedding: a key of ``EMBEDDINGS``.
        fourier_scale: standard deviation of the frequencies.
        groups: of the normalisations; None for a quarter of the channels, at most 32.
        centered: the data are on [-1, 1]; else on [0, 1], and centred here.
        scale_by_sigma: divide the output by sigma = exp(c_noise), which makes it a score; under Fourier embedding only.
        num_classes: number of class labels; 0 for none.
        num_attributes: length of label vectors, in place of classes; 0 for none.
        augment_dims: numbers that tell how the data were augmented; 0 for none.

    Raises:
        ValueError: an unknown name, or an image that cannot be halved so often.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        channels: int = 128,
        channel_mult: Sequence[float] = (1, 2, 2, 2),
        res_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        block: str = "biggan",
        fir: Sequence[float] | None = (1, 3, 3, 1),
        skip_rescale: bool = True,
        progressive: str = "none",
        progressive_input: str = "none",
        combine: str = "sum",
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        groups: int | None = None,
        centered: bool = True,
        scale_by_sigma: bool = False,
        num_classes: int = 0,
        num_attributes: int = 0,
        augment_dims: int = 0,
    ) -> None:
        super().__init__()
        for name, table, kind in (
            (block, BLOCKS, "block"),
            (progressive, PROGRESSIVE, "progressive"),
            (progressive_input, PROGRESSIVE, "progressive_input"),
            (combine, {"sum": 0, "cat": 1}, "combine"),
            (embedding, EMBEDDINGS, "embedding"),
        ):
            lookup(table, name, kind)
        widths = [round(channels * mult) for mult in channel_mult]
        levels = len(widths)
        if not levels or image_size % 2 ** (levels - 1):
            raise ValueError(f"an image of size {image_size} cannot be halved {levels - 1} times; use fewer levels")
        if scale_by_sigma and embedding != "fourier":
            raise ValueError(
                "scale_by_sigma reads sigma from c_noise = log sigma: give embedding 'fourier', or predict eps"
            )
        fir = fir or None
        self.channels, self.levels, self.res_blocks = channels, levels, res_blocks
        self.scale, self.centered, self.scale_by_sigma = (
            1 / math.sqrt(2) if skip_rescale else 1.0,
            centered,
            scale_by_sigma,
        )
        self.block, self.progressive, self.progressive_input, self.combine = (
            block,
            progressive,
            progressive_input,
            combine,
        )
        wide_embedding = 4 * channels

        def norm(count: int) -> nn.GroupNorm:
            return nn.GroupNorm(groups or min(count // 4, 32), count, eps=1e-6)

        res = partial(ResidualBlock, embedding=wide_embedding, norm=norm, dropout=dropout, rescale=skip_rescale)
        attention = partial(SelfAttention, norm=norm, rescale=skip_rescale)
        fourier = embedding == "fourier"
        waves = FourierEmbedding(channels, fourier_scale) if fourier else None
        labels = Conditions(num_classes, num_attributes, augment_dims)
        self.embed = ConditionEmbedding(channels * (2 if fourier else 1), wide_embedding, labels, waves)
        self.image_down, self.image_up = Resample("down", fir), Resample("up", fir)

        self.encoder = nn.ModuleDict({"stem": nn.Conv2d(in_channels, channels, 3, padding=1)})
        wide, skips, pyramid, size = channels, [channels], in_channels, image_size
        for level, width in enumerate(widths):
            for number in range(res_blocks):
                self.encoder[f"{level}_block{number}"] = res(wide, width)
                wide = width
                if size in attention_resolutions:
                    self.encoder[f"{level}_attention{number}"] = attention(wide)
                skips.append(wide)
            if level < levels - 1:
                self.encoder[f"{level}_down"] = (
                    conv_down(wide, wide, fir) if block == "ddpm" else res(wide, wide, resample=Resample("down", fir))
                )
                if progressive_input == "skip":
                    self.encoder[f"{level}_pyramid"] = nn.Conv2d(pyramid, wide, 1)
                    wide *= 2 if combine == "cat" else 1
                elif progressive_input == "residual":
                    self.encoder[f"{level}_pyramid"] = conv_down(pyramid, wide, fir)
                    pyramid = wide
                skips.append(wide)
                size //= 2
        self.middle = nn.ModuleList([res(wide, wide), attention(wide), res(wide, wide)])
        self.decoder = nn.ModuleDict()
        for level, width in reversed(list(enumerate(widths))):
            for number in range(res_blocks + 1):
                self.decoder[f"{level}_block{number}"] = res(wide + skips.pop(), width)
                wide = width
            if size in attention_resolutions:
                self.decoder[f"{level}_attention"] = attention(wide)
            last = level == levels - 1
            if progressive == "skip":
                self.decoder[f"{level}_norm"] = norm(wide)
                self.decoder[f"{level}_image"] = zero(nn.Conv2d(wide, in_channels, 3, padding=1))
            elif progressive == "residual" and last:
                self.decoder[f"{level}_norm"] = norm(wide)
                self.decoder[f"{level}_image"] = nn.Conv2d(wide, wide, 3, padding=1)
            elif progressive == "residual":
                self.decoder[f"{level}_pyramid"] = ConvUp(pyramid, wide, fir)
            pyramid = wide  # of the features, where the output grows
            if level > 0:
                self.decoder[f"{level}_up"] = (
                    ConvUp(wide, wide, fir) if block == "ddpm" else res(wide, wide, resample=Resample("up", fir))
                )
                size *= 2
        if progressive != "skip":
            self.norm = norm(wide)
            self.head = zero(nn.Conv2d(wide, in_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Predict F of x's shape.

        Args:
            x: images (B, C, H, W).
            c_noise: noise levels (B,); see ``EMBEDDINGS``.
            y: class labels (B,) or attributes (B, num_attributes), int64, -1 for unknown; None for nothing known.
            augment: how the data were augmented (B, augment_dims); None for not at all.
        """
        embedding = self.embed(c_noise, y, augment)
        x = x if self.centered else 2 * x - 1
        h, skips = self._encode(x, embedding)
        first, attention, second = self.middle
        out = self._decode(second(attention(first(h, embedding)), embedding), skips, embedding)
        if self.scale_by_sigma:
            out = out / match_dims(c_noise.exp(), out)
        return out

    def _encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features of the last level, and those of all places for the decoder."""
        layers = self.encoder
        pyramid, h = x, layers["stem"](x)
        skips = [h]
        for level in range(self.levels):
            for number in range(self.res_blocks):
                h = layers[f"{level}_block{number}"](h, embedding)
                if f"{level}_attention{number}" in layers:
                    h = layers[f"{level}_attention{number}"](h)
                skips.append(h)
            if level == self.levels - 1:
                return h, skips
            down = layers[f"{level}_down"]
            h = down(h, embedding) if isinstance(down, ResidualBlock) else down(h)
            if self.progressive_input == "skip":
                pyramid = self.image_down(pyramid)
                joined = layers[f"{level}_pyramid"](pyramid)
                h = joined + h if self.combine == "sum" else torch.cat([joined, h], 1)
            elif self.progressive_input == "residual":
                h = pyramid = (layers[f"{level}_pyramid"](pyramid) + h) * self.scale
            skips.append(h)
        raise AssertionError("a network has at least one level")

    def _decode(self, h: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        layers, pyramid = self.decoder, None
        for level in reversed(range(self.levels)):
            for number in range(self.res_blocks + 1):
                h = layers[f"{level}_block{number}"](concatenate(h, skips.pop()), embedding)
            if f"{level}_attention" in layers:
                h = layers[f"{level}_attention"](h)
            if f"{level}_image" in layers:
                image = layers[f"{level}_image"](norm_silu(h, cast(nn.GroupNorm, layers[f"{level}_norm"])))
                pyramid = image if pyramid is None else self.image_up(pyramid) + image
            elif self.progressive == "residual":
                h = pyramid = (layers[f"{level}_pyramid"](pyramid) + h) * self.scale
            if level > 0:
                up = layers[f"{level}_up"]
                h = up(h, embedding) if isinstance(up, ResidualBlock) else up(h)
        return cast(Tensor, pyramid) if self.progressive == "skip" else self.head(norm_silu(h, self.norm))
