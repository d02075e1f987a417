"""Building blocks of the networks: time embedding, normalisation, residual block, self-attention, resampling."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.checkpointing import Block
from models.fused.norm_silu import norm_silu, normalise
from models.fused.residual import bias_of, residual, unbiased

M = TypeVar("M", bound=nn.Module)


def sinusoidal_embedding(
    c_noise: Tensor, dim: int, max_period: float = 10_000.0, *, cosines_first: bool = False
) -> Tensor:
    """Sines and cosines of c_noise at dim/2 frequencies (arXiv 1706.03762), (B,) -> (B, dim).

    The frequencies fall from 1 to 1/max_period (DDPM's); with ``cosines_first`` they stop one place before that (guided
    diffusion's and DiT's). They suit inputs of the order of 1000, DDPM's number of steps.
    """
    half = dim // 2
    places = torch.arange(half, device=c_noise.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(max_period) * places / max(half if cosines_first else half - 1, 1))
    angles = c_noise.float().unsqueeze(1) * frequencies
    waves = [angles.cos(), angles.sin()] if cosines_first else [angles.sin(), angles.cos()]
    return functional.pad(torch.cat(waves, 1), (0, dim % 2))


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Without autocast: for what is small, and tells all the rest; the device "meta" knows of no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def products_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """With convolutions and matrix products in a dtype, by autocast where it is not float32."""
    lower = dtype != torch.float32 and device.type != "meta"
    return torch.autocast(device.type, dtype) if lower else nullcontext()


class StepEmbedding(nn.Module):
    """A learned row for each step of a chain; between two steps their rows are mixed linearly.

    Args:
        steps: of the chain, at least 2.
        dim: width of a row.
    """

    def __init__(self, steps: int, dim: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(steps, dim)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Steps (B,), 0 .. steps - 1 -> (B, dim)."""
        place = c_noise.clamp(0, self.rows.num_embeddings - 1)
        below = place.floor().clamp(max=self.rows.num_embeddings - 2)
        share = (place - below).unsqueeze(1).to(self.rows.weight.dtype)
        return torch.lerp(self.rows(below.long()), self.rows(below.long() + 1), share)


def common_groups(widths: Sequence[int]) -> int:
    """Groups for normalisations of all these widths: the most that divide them all, up to 32, of 4 channels or more.

    A group of a single channel would subtract whatever the condition embedding has added to it.
    """
    most = min(32, max(min(widths) // 4, 1))
    return max(groups for groups in range(1, most + 1) if math.gcd(*widths) % groups == 0)


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-6) -> nn.GroupNorm:
    """GroupNorm (arXiv 1803.08494), by default with ``common_groups`` of its own width."""
    return nn.GroupNorm(groups or common_groups([channels]), channels, eps=eps)


Norm = Callable[[int], nn.GroupNorm]
"""Number of channels -> their normalisation."""


def zero(module: M) -> M:
    """The module with all its parameters set to zero: a residual branch or an output that starts silent."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Conditions(NamedTuple):
    """What a network may be told beside the noise level; 0 stands for nothing.

    Attributes:
        num_classes: labels are classes 0 .. num_classes - 1, or -1 for unknown.
        num_attributes: labels are vectors of this length, of 0, 1, and -1 for unknown.
        augment_dims: length of the vector that says how the data were augmented, 0 for not at all.
    """

    num_classes: int = 0
    num_attributes: int = 0
    augment_dims: int = 0


NOTHING = Conditions()


class ConditionEmbedding(nn.Module):
    """What every block is told: an MLP of an embedding of the noise level, plus one of the label.

    It is computed in float32, since everything depends on it. A class adds a learned vector, and so does the unknown
    class (the null label). Attributes add one each, for yes or for no, and nothing where they are unknown; an
    augmentation (arXiv 2206.00364) a linear map of its numbers.

    Args:
        dim: width of the embedding of the noise level.
        out_dim: width of the result.
        told: what there is beside it.
        waves: the embedding, (B,) -> (B, dim); None for the sinusoidal one.

    Raises:
        ValueError: classes and attributes at once.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        told: Conditions = NOTHING,
        waves: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if told.num_classes and told.num_attributes:
            raise ValueError(f"labels are classes or attributes, not both: {told}")
        self.waves = waves or partial(sinusoidal_embedding, dim=dim)
        self.told = told
        self.mlp = nn.Sequential(nn.Linear(dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim))
        self.label = nn.Embedding(told.num_classes + 1, out_dim) if told.num_classes else None
        self.attributes = nn.Linear(2 * told.num_attributes, out_dim, bias=False) if told.num_attributes else None
        self.augment = nn.Linear(told.augment_dims, out_dim, bias=False) if told.augment_dims else None

    def forward(self, c_noise: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Embed noise levels (B,), labels (B,) or (B, num_attributes) and augmentations to (B, out_dim).

        Raises:
            ValueError: labels or augmentations for a network without, or labels of another shape.
        """
        with full_precision(c_noise.device):
            return self._embed(c_noise, y, augment)

    def _embed(self, c_noise: Tensor, y: Tensor | None, augment: Tensor | None) -> Tensor:
        embedding = self.mlp(self.waves(c_noise).to(next(self.mlp.parameters()).dtype))
        if self.label is None and self.attributes is None and y is not None:
            raise ValueError("labels were given to a network without; build it with num_classes or num_attributes")
        if self.augment is None and augment is not None:
            raise ValueError("an augmentation was told to a network without; build it with augment_dims")
        if self.label is not None:
            embedding = embedding + self.label(self._classes(y, c_noise))
        if self.attributes is not None and y is not None:
            embedding = embedding + self.attributes(self._indicators(y).to(embedding.dtype))
        if self.augment is not None and augment is not None:
            embedding = embedding + self.augment(augment.to(embedding.dtype))
        return embedding

    def _classes(self, y: Tensor | None, c_noise: Tensor) -> Tensor:
        """Rows of the table of classes, of which the last is the null label."""
        null = self.told.num_classes
        if y is None:
            return torch.full(c_noise.shape, null, device=c_noise.device)
        if y.shape != c_noise.shape:
            raise ValueError(f"{len(c_noise)} samples need classes of shape ({len(c_noise)},), got {tuple(y.shape)}")
        return torch.where(y < 0, null, y)

    def _indicators(self, y: Tensor) -> Tensor:
        """Which attributes are known to be there, and which not to, (B, 2 num_attributes)."""
        if y.ndim != 2 or y.shape[1] != self.told.num_attributes:
            raise ValueError(f"attributes must have shape (B, {self.told.num_attributes}), got {tuple(y.shape)}")
        return torch.cat([y == 1, y == 0], 1)


def concatenate(x: Tensor, skip: Tensor) -> Tensor:
    """Channels of two images side by side, (B, C, H, W), (B, C', H, W) -> (B, C + C', H, W)."""
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return torch.cat([x, skip], 1) if transformed else _Concatenate.apply(x, skip)


class _Concatenate(torch.autograd.Function):
    """Gradients come back as images of their own.

    Those of torch.cat are views into one image, which everything that uses them would copy anew.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor) -> Tensor:
        ctx.channels = x.shape[1]
        return torch.cat([x, skip], 1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        parts = dy[:, : ctx.channels], dy[:, ctx.channels :]
        functorch = torch._C._functorch
        if functorch.is_functorch_wrapped_tensor(dy) or functorch.is_legacy_batchedtensor(dy):
            return parts
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)


class ResidualBlock(Block):
    """x + conv(drop(act(norm(conv(act(norm(x))) + embedding)))), DDPM's block (arXiv 2006.11239, appendix B).

    With ``resample`` it is BigGAN's (arXiv 1809.11096), which changes the resolution on both branches. The second
    convolution starts at zero, so a new block is its shortcut: the identity or a 1x1 projection.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        embedding: width of the condition embedding.
        dropout: probability.
        norm: its normalisation.
        rescale: divide the sum by sqrt 2.
        resample: doubles or halves the resolution; None keeps it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        norm: Norm = group_norm,
        *,
        rescale: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(2) if rescale else 1.0  # keeps the variance of the branches (arXiv 1912.04958)
        self.resample = resample or nn.Identity()
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
        h = unbiased(self.conv1, self.resample(norm_silu(x, self.norm1)))
        told = self.modulate(functional.silu(embedding)) + bias_of(self.conv1)
        h = norm_silu(h, self.norm2, added=told, dropout=self.dropout)
        return residual(self.resample(x), self.shortcut, h, self.conv2, self.scale)


class SelfAttention(Block):
    """x + proj(attention(norm(x))) over the pixels (arXiv 1706.03762); the projection starts at zero.

    Args:
        channels: width, divisible by ``heads``.
        heads: number of attention heads.
        norm: its normalisation.
        rescale: divide the sum by sqrt 2.
        head_channels: channels of a head, in place of ``heads``.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        norm: Norm = group_norm,
        *,
        rescale: bool = False,
        head_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(2) if rescale else 1.0
        if head_channels and channels % head_channels:
            raise ValueError(f"{channels} channels cannot be split into heads of {head_channels}; choose a divisor")
        heads = channels // head_channels if head_channels else heads
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split into {heads} attention heads; choose a divisor")
        self.heads = heads
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        qkv = self.qkv(normalise(x, self.norm)).flatten(2).transpose(1, 2)  # (B, HW, 3C), as it lies in memory
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        h = functional.scaled_dot_product_attention(q, k, v)  # (B, heads, HW, C / heads)
        h = h.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, x.shape[2:])
        return residual(x, nn.Identity(), h, self.proj, self.scale)


class Downsample(nn.Module):
    """Halve the resolution by a strided convolution; odd sizes are rounded up.

    Args:
        channels: width.
        padding: 1 on all sides; or 0, which pads below and on the right only (DDPM's own; even sizes).
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""
        return self.conv(x if self.conv.padding[0] else functional.pad(x, (0, 1, 0, 1)))


class Upsample(Block):
    """Nearest-neighbour resize to a given size, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, h, w) -> (B, C, *size)."""
        with full_precision(x.device):  # autocast would copy pixels in float32
            x = functional.interpolate(x, size=size, mode="nearest")
        return self.conv(x)
