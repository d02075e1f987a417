"""DiT, the diffusion transformer (arXiv 2212.09748): the image as a sequence of patches, told the noise level by adaLN.

x -> patches -> tokens + places -> [attention, MLP: each scaled, shifted and gated by the condition] -> patches
"""

from collections.abc import Iterable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.checkpointing import Block
from models.layers import ConditionEmbedding, Conditions, sinusoidal_embedding, zero

FREQUENCIES = 256
"""Width of the embedding of the noise level, whatever the width of the network."""

_norm = partial(nn.LayerNorm, eps=1e-6, elementwise_affine=False)  # the condition scales and shifts in its place


def place_embedding(places: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of the column and then of the row, (N, 2) rows and columns -> (N, dim), dim divisible by 4.

    The frequencies are 10000^(-4k / dim), k = 0 .. dim/4 - 1 (arXiv 1706.03762, in two dimensions).
    """
    row, column = (
        sinusoidal_embedding(place, dim // 2, cosines_first=True).roll(dim // 4, 1) for place in places.unbind(1)
    )
    return torch.cat([column, row], 1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) x + shift, with one scale and shift (B, 1, C) for all tokens (B, N, C)."""
    return (1 + scale) * x + shift


class Attention(nn.Module):
    """proj(attention(x)) over the tokens (arXiv 1706.03762).

    Args:
        channels: width, divisible by ``heads``.
        heads: number of attention heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, C / heads)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DiTBlock(Block):
    """Adaptive layer norm (adaLN-Zero): x <- x + gate f((1 + scale) norm(x) + shift), f attention and then an MLP.

    Shifts, scales and gates are linear in act(embedding) and start at zero, so a new block is the identity.

    Args:
        channels: width, that of the condition embedding too.
        heads: number of attention heads.
        mlp_ratio: hidden width of the MLP, in multiples of ``channels``.
        dropout: probability, at the end of both branches.
    """

    def __init__(self, channels: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        wide = mlp_ratio * channels
        self.modulate = nn.Linear(channels, 6 * channels)
        self.norm1 = _norm(channels)
        self.attention = Attention(channels, heads)
        self.norm2 = _norm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, wide), nn.GELU("tanh"), nn.Linear(wide, channels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, N, C), (B, C) -> (B, N, C)."""
        told = self.modulate(functional.silu(embedding)).unsqueeze(1)
        shift1, scale1, gate1, shift2, scale2, gate2 = told.chunk(6, dim=2)
        x = x + gate1 * self.dropout(self.attention(modulate(self.norm1(x), shift1, scale1)))
        return x + gate2 * self.dropout(self.mlp(modulate(self.norm2(x), shift2, scale2)))


class DiT(nn.Module):
    """Diffusion transformer F(x, c_noise, y) on images whose sides are multiples of the patch.

    A patch's place is counted in patches of the nominal size: at another size the same range is divided more finely or
    more coarsely. The output starts at zero. The defaults are DiT-S/2's; B, L and XL have channels 768, 1024, 1152,
    depth 12, 24, 28, and heads 12, 16, 16.

    Args:
        in_channels: channels of the image; the output has as many.
        image_size: nominal resolution, of the places; the network runs on other sizes too.
        patch_size: side of a patch, in pixels.
        channels: width of a token, divisible by ``heads`` and by 4.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of a block's MLP, in multiples of ``channels``.
        dropout: probability, at the end of each branch of a block; the published networks have none.
        num_classes: number of class labels; 0 for none.
        num_attributes: length of label vectors, in place of classes; 0 for none.
        augment_dims: numbers that tell how the data were augmented; 0 for none.
        learned_variance: the network has 2 in_channels outputs, of which ``forward`` gives the first half.

    Raises:
        ValueError: widths and counts below 1, or a width or size that does not divide.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        patch_size: int = 2,
        channels: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        num_classes: int = 0,
        num_attributes: int = 0,
        augment_dims: int = 0,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        if min(in_channels, image_size, patch_size, channels, depth, heads, mlp_ratio) < 1:
            raise ValueError(
                f"in_channels {in_channels}, image_size {image_size}, patch_size {patch_size}, channels {channels}, "
                f"depth {depth}, heads {heads}, mlp_ratio {mlp_ratio}: all must be at least 1"
            )
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split into {heads} attention heads; choose a divisor")
        if channels % 4:
            raise ValueError(
                f"{channels} channels cannot hold sines and cosines of rows and columns; choose a multiple of 4"
            )
        self.in_channels, self.patch_size = in_channels, patch_size
        self._check_size(image_size, image_size)
        self.nominal = image_size // patch_size
        waves = partial(sinusoidal_embedding, dim=FREQUENCIES, cosines_first=True)
        labels = Conditions(num_classes, num_attributes, augment_dims)
        self.embed = ConditionEmbedding(FREQUENCIES, channels, labels, waves)
        self.stem = nn.Conv2d(in_channels, channels, patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(DiTBlock(channels, heads, mlp_ratio, dropout) for _ in range(depth))
        self.modulate = nn.Linear(channels, 2 * channels)
        self.norm = _norm(channels)
        self.head = nn.Linear(channels, patch_size**2 * in_channels * (2 if learned_variance else 1))
        self._initialise()

    def _initialise(self) -> None:
        """Xavier's law for what multiplies tokens, normal of 0.02 in the embeddings, zero for what must be silent."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight.data.flatten(1))  # a patch is one vector
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in self.embed.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
        blocks = cast(Iterable[DiTBlock], self.blocks)
        for layer in (*(block.modulate for block in blocks), self.modulate, self.head):
            zero(layer)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Predict F of x's shape.

        Args:
            x: images (B, C, H, W), H and W divisible by the patch.
            c_noise: noise levels (B,), of the order of 0 .. 1000.
            y: class labels (B,) or attributes (B, num_attributes), int64, -1 for unknown; None for nothing known.
            augment: how the data were augmented (B, augment_dims); None for not at all.

        Raises:
            ValueError: a size that the patch does not divide, or labels for a network without.
        """
        return self.outputs(x, c_noise, y, augment)[:, : self.in_channels]

    def outputs(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """All outputs: F, and the interpolation of the variance where it is learned."""
        self._check_size(*x.shape[2:])
        embedding = self.embed(c_noise, y, augment)
        patches = self.stem(x)
        tokens = patches.flatten(2).transpose(1, 2) + self._places(patches).to(x.dtype)
        for block in self.blocks:
            tokens = block(tokens, embedding)
        shift, scale = self.modulate(functional.silu(embedding)).unsqueeze(1).chunk(2, dim=2)
        out = self.head(modulate(self.norm(tokens), shift, scale))
        side = self.patch_size
        out = out.unflatten(2, (side, side, -1)).unflatten(1, patches.shape[2:])  # (B, rows, columns, side, side, C)
        return out.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _places(self, patches: Tensor) -> Tensor:
        """Embedding of the places of patches (B, C, rows, columns), (rows columns, C)."""
        rows, columns = (torch.arange(n, device=patches.device) * (self.nominal / n) for n in patches.shape[2:])
        return place_embedding(torch.cartesian_prod(rows, columns), patches.shape[1])

    def _check_size(self, height: int, width: int) -> None:
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"an image of {height} x {width} pixels cannot be cut into patches of {self.patch_size} x "
                f"{self.patch_size}; choose a patch_size that divides both sides, or crop or pad the image"
            )
