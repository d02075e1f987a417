"""The building blocks against independent formulas."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from models.layers import (
    ConditionEmbedding,
    Conditions,
    Downsample,
    ResidualBlock,
    SelfAttention,
    Upsample,
    group_norm,
    sinusoidal_embedding,
)


@pytest.mark.parametrize("dim", [2, 7, 8, 128])
def test_the_embedding_is_transformers(dim):
    """Sines, then cosines, at 10000^(-i / (dim / 2 - 1)): DDPM's form of arXiv 1706.03762, section 3.5."""
    c = np.array([0.0, 0.3, 1.0, 500.0, 999.0], dtype=np.float32)
    half = dim // 2
    expected = np.zeros((5, dim))
    for row, value in enumerate(c.astype(np.float64)):
        for i in range(half):
            angle = value * 10_000 ** (-i / max(half - 1, 1))
            expected[row, i], expected[row, half + i] = math.sin(angle), math.cos(angle)
    found = sinusoidal_embedding(torch.from_numpy(c), dim)
    assert found.shape == (5, dim)
    # float32 holds an angle of 999 to 3e-5, and the frequency to 6e-8 of it.
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def test_the_embedding_tells_neighbouring_steps_apart():
    found = sinusoidal_embedding(torch.arange(1000.0), 128)
    distances = torch.cdist(found, found).fill_diagonal_(math.inf)
    assert distances.min() > 0.5


@pytest.mark.parametrize("channels", range(1, 71))
def test_the_groups_of_a_norm_divide_its_channels(channels):
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups == max(g for g in range(1, 33) if channels % g == 0 and (channels >= 4 * g or g == 1))
    assert norm(torch.randn(2, channels, 3, 3)).isfinite().all()


def test_the_usual_widths_have_32_groups():
    assert [group_norm(c).num_groups for c in (128, 256, 384, 512, 1024)] == [32] * 5
    assert [group_norm(c).num_groups for c in (16, 32, 64, 96)] == [4, 8, 16, 24]
    assert group_norm(128, groups=8).num_groups == 8
    assert group_norm(128, groups=2, eps=1e-5).eps == 1e-5


@pytest.mark.parametrize(("wide_in", "wide_out"), [(8, 8), (8, 12)])
def test_a_new_residual_block_is_its_shortcut(wide_in, wide_out):
    block = ResidualBlock(wide_in, wide_out, 16, 0.3)
    x, embedding = torch.randn(2, wide_in, 5, 6), torch.randn(2, 16)
    found = block(x, embedding)
    if wide_in == wide_out:
        assert torch.equal(found, x)
    else:
        weight = block.shortcut.weight[:, :, 0, 0]
        expected = torch.einsum("oi,bihw->bohw", weight, x) + block.shortcut.bias[:, None, None]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("width", [2, 4, 5, 8, 16, 32, 48, 64, 128])
def test_a_residual_block_hears_the_condition_at_every_width(width):
    """The norm behind the sum must not take the embedding out again, as it would with one channel in each group."""
    torch.manual_seed(0)
    block = ResidualBlock(width, width, 16, 0.0)
    nn.init.normal_(block.conv2.weight, std=0.2)
    x = torch.randn(3, width, 5, 6)
    found = block(x, torch.randn(3, 16)) - block(x, torch.randn(3, 16))
    assert (found.abs().flatten(1).mean(1) > 0.01).all()


def test_a_residual_block_is_ddpms_formula():
    torch.manual_seed(0)
    block = ResidualBlock(8, 12, 16, 0.0)
    nn.init.normal_(block.conv2.weight, std=0.1)
    for norm in (block.norm1, block.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x, embedding = torch.randn(2, 8, 5, 6), torch.randn(2, 16)

    def normalised(h, norm):
        parts = h.reshape(2, norm.num_groups, -1)
        parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return parts.reshape(h.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]

    def act(h):
        return h * torch.sigmoid(h)

    h = functional.conv2d(act(normalised(x, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1)
    h = h + (act(embedding) @ block.modulate.weight.T + block.modulate.bias)[:, :, None, None]
    h = functional.conv2d(act(normalised(h, block.norm2)), block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = functional.conv2d(x, block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(block(x, embedding), shortcut + h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_torchs_multihead_attention(heads):
    torch.manual_seed(0)
    ours, theirs = SelfAttention(16, heads), nn.MultiheadAttention(16, heads, batch_first=True)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0, 0.5)
        theirs.in_proj_weight.copy_(ours.qkv.weight[:, :, 0, 0])
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.proj.weight[:, :, 0, 0])
        theirs.out_proj.bias.copy_(ours.proj.bias)
    x = torch.randn(3, 16, 5, 7)
    tokens = ours.norm(x).flatten(2).mT
    expected = theirs(tokens, tokens, tokens, need_weights=False)[0]
    torch.testing.assert_close(ours(x), x + expected.mT.reshape(x.shape), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(SelfAttention(16, heads)(x), x, rtol=0, atol=0)  # a new one is the identity


def test_attention_does_not_know_the_order_of_the_pixels():
    torch.manual_seed(0)
    layer = SelfAttention(8, 2)
    nn.init.normal_(layer.proj.weight)
    x, order = torch.randn(2, 8, 4, 4), torch.randperm(16)
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    expected = layer(x).flatten(2)[:, :, order].reshape(x.shape)
    torch.testing.assert_close(layer(shuffled), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "half"), [((8, 8), (4, 4)), ((7, 4), (4, 2)), ((1, 5), (1, 3))])
def test_halving_and_doubling_meet(size, half):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    down, up = Downsample(3), Upsample(3)
    small = down(x)
    assert small.shape[2:] == half
    full = functional.conv2d(x, down.conv.weight, down.conv.bias, padding=1)
    torch.testing.assert_close(small, full[:, :, ::2, ::2], rtol=1e-4, atol=1e-5)

    rows, columns = (torch.arange(n) * h // n for n, h in zip(size, half, strict=True))
    repeated = small[:, :, rows][:, :, :, columns]
    expected = functional.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1)
    torch.testing.assert_close(up(small, size), expected, rtol=1e-4, atol=1e-5)


def test_the_condition_is_an_mlp_of_the_noise_plus_a_vector_of_the_class():
    torch.manual_seed(0)
    layer = ConditionEmbedding(8, 12, Conditions(num_classes=4))
    c, y = torch.tensor([1.0, 700.0]), torch.tensor([3, 0])
    first, last = layer.mlp[0], layer.mlp[2]
    h = sinusoidal_embedding(c, 8) @ first.weight.T + first.bias
    h = (h * torch.sigmoid(h)) @ last.weight.T + last.bias
    torch.testing.assert_close(layer(c, y), h + layer.label.weight[y])
    torch.testing.assert_close(layer(c), h + layer.label.weight[4])
    assert layer.label.weight.shape == (5, 12)
    assert ConditionEmbedding(8, 12).label is None


def test_attributes_and_augmentations_add_linear_terms():
    torch.manual_seed(0)
    layer = ConditionEmbedding(8, 12, Conditions(num_attributes=3, augment_dims=2))
    plain = ConditionEmbedding(8, 12)
    plain.mlp.load_state_dict(layer.mlp.state_dict())
    c, y, a = torch.tensor([1.0, 700.0]), torch.tensor([[1, 0, -1], [-1, 1, 1]]), torch.randn(2, 2)
    yes, no = layer.attributes.weight.split(3, dim=1)
    expected = plain(c) + torch.stack([yes[:, 0] + no[:, 1], yes[:, 1] + yes[:, 2]]) + a @ layer.augment.weight.T
    torch.testing.assert_close(layer(c, y, a), expected)
    torch.testing.assert_close(layer(c), plain(c))
