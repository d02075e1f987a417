"""The U-Net of DDPM: encoder, bottleneck and decoder with skip connections (arXiv 1505.04597, 2006.11239).

x -> stem -> [level 0: blocks] -> down -> [level 1: blocks] -> ... -> [middle: block, attention, block] -> ...
  every block's output is kept, and the decoder concatenates them again in reverse order
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from models.checkpointing import Block
from models.fused.norm_silu import norm_silu
from models.layers import (
    ConditionEmbedding,
    Conditions,
    Downsample,
    Norm,
    ResidualBlock,
    SelfAttention,
    StepEmbedding,
    Upsample,
    common_groups,
    concatenate,
    group_norm,
    sinusoidal_embedding,
    zero,
)
from sde_lib import lookup

EMBEDDINGS = {
    "positional": "DDPM's waves of c_noise in 0 .. 999",
    "cosines_first": "the waves of guided diffusion, and of diffusers' own training",
    "steps": "a learned row for each step of a chain",
}


class Stage(Block):
    """A residual block, followed by self-attention where the resolution asks for it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        dropout: float,
        attention: bool,
        heads: int,
        head_channels: int | None,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(in_channels, out_channels, embedding, dropout, norm)
        self.attention = (
            SelfAttention(out_channels, heads, norm, head_channels=head_channels) if attention else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, in_channels, H, W), (B, embedding) -> (B, out_channels, H, W)."""
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """Time-conditioned U-Net F(x, c_noise, y) on images of any size and any number of channels.

    The output convolution starts at zero. The defaults are DDPM's CIFAR-10 network.

    Args:
        in_channels: channels of the image; the output has as many.
        image_size: nominal resolution, which places the attention; the network runs on other sizes too.
        channels: width of the first level.
        channel_mult: width of each level, in multiples of ``channels``; its length is the number of levels.
        res_blocks: residual blocks in each level of the encoder (the decoder has one more).
        attention_resolutions: resolutions, as reached from image_size by halving, that have self-attention.
        heads: attention heads; used where ``head_channels`` is None.
        head_channels: channels of a head.
        dropout: probability, in every residual block.
        num_classes: number of class labels; 0 for none.
        num_attributes: length of label vectors, in place of classes; 0 for none.
        augment_dims: numbers that tell how the data were augmented; 0 for none.
        embedding: a key of ``EMBEDDINGS``.
        embedding_steps: length of the chain, for the embedding "steps".
        groups: of all normalisations; None for ``common_groups`` of the widths.
        norm_eps: added to the variances there.
        downsample_padding: 1, or 0 for DDPM's own; see ``Downsample``.

    Raises:
        ValueError: no level, or widths and counts below 1.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        channels: int = 128,
        channel_mult: Sequence[float] = (1, 2, 2, 2),
        res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        heads: int = 1,
        head_channels: int | None = None,
        dropout: float = 0.1,
        num_classes: int = 0,
        num_attributes: int = 0,
        augment_dims: int = 0,
        embedding: str = "positional",
        embedding_steps: int = 1000,
        groups: int | None = None,
        norm_eps: float = 1e-6,
        downsample_padding: int = 1,
    ) -> None:
        super().__init__()
        widths = [round(channels * mult) for mult in channel_mult]
        if not widths or min(in_channels, image_size, channels, res_blocks, *widths) < 1:
            raise ValueError(
                f"channels {channels}, channel_mult {tuple(channel_mult)}, res_blocks {res_blocks}, in_channels "
                f"{in_channels}, image_size {image_size}: all must be at least 1, with at least one level"
            )
        wide_embedding = 4 * channels
        norm = partial(group_norm, groups=groups or common_groups(widths), eps=norm_eps)
        build = partial(
            Stage, embedding=wide_embedding, dropout=dropout, norm=norm, heads=heads, head_channels=head_channels
        )

        def stage(wide_in: int, wide_out: int, size: int) -> Stage:
            attention = size in attention_resolutions
            return build(wide_in, wide_out, attention=attention)

        lookup(EMBEDDINGS, embedding, "embedding of unet")
        waves: Callable[[Tensor], Tensor]
        waves = partial(sinusoidal_embedding, dim=channels, cosines_first=embedding == "cosines_first")
        waves = StepEmbedding(embedding_steps, channels) if embedding == "steps" else waves
        labels = Conditions(num_classes, num_attributes, augment_dims)
        self.embed = ConditionEmbedding(channels, wide_embedding, labels, waves)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.encoder = nn.ModuleDict()
        self.decoder = nn.ModuleDict()
        size, wide, skips = image_size, channels, [channels]
        sizes = []
        for level, width in enumerate(widths):
            for block in range(res_blocks):
                self.encoder[f"{size}x{size}_block{block}"] = stage(wide, width, size)
                wide = width
                skips.append(wide)
            sizes.append(size)
            if level < len(widths) - 1:
                if size == 1:
                    raise ValueError(
                        f"an image of size {image_size} cannot be halved {len(widths) - 1} times; use fewer levels"
                    )
                self.encoder[f"{size}x{size}_down"] = Downsample(wide, downsample_padding)
                skips.append(wide)
                size = (size + 1) // 2
        self.middle = nn.ModuleList(build(wide, wide, attention=attention) for attention in (True, False))
        for level, width in reversed(list(enumerate(widths))):
            size = sizes[level]
            for block in range(res_blocks + 1):
                self.decoder[f"{size}x{size}_block{block}"] = stage(wide + skips.pop(), width, size)
                wide = width
            if level > 0:
                self.decoder[f"{size}x{size}_up"] = Upsample(wide)
        self.norm = norm(wide)
        self.head = zero(nn.Conv2d(wide, in_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Predict F of x's shape.

        Args:
            x: images (B, C, H, W).
            c_noise: noise levels (B,), of the order of 0 .. 1000.
            y: class labels (B,) or attributes (B, num_attributes), int64, -1 for unknown; None for nothing known.
            augment: how the data were augmented (B, augment_dims); None for not at all.
        """
        embedding = self.embed(c_noise, y, augment)
        x = self.stem(x)
        skips = [x]
        for layer in self.encoder.values():
            x = layer(x) if isinstance(layer, Downsample) else layer(x, embedding)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.decoder.values():
            if isinstance(layer, Upsample):
                height, width = skips[-1].shape[2:]
                x = layer(x, (height, width))
            else:
                x = layer(concatenate(x, skips.pop()), embedding)
        return self.head(norm_silu(x, self.norm))
