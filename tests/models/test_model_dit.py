"""The diffusion transformer against diffusers' own, its published sizes, and what it must not depend on."""

import math

import pytest
import torch
from diffusers import DiTTransformer2DModel

from models import DiT
from models import dit as module

NAMES = {
    "stem": "pos_embed.proj",
    "embed.mlp.0": "transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_1",
    "embed.mlp.2": "transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_2",
    "embed.label": "transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table",
    "blocks.{i}.modulate": "transformer_blocks.{i}.norm1.linear",
    "blocks.{i}.attention.proj": "transformer_blocks.{i}.attn1.to_out.0",
    "blocks.{i}.mlp.0": "transformer_blocks.{i}.ff.net.0.proj",
    "blocks.{i}.mlp.2": "transformer_blocks.{i}.ff.net.2",
    "modulate": "proj_out_1",
    "head": "proj_out_2",
}
"""Layer of ours -> theirs, of each block i; they have an embedding of the condition in every block."""
CLASSES = 5


def awake(**options):
    """A small network, all its tensors random: none is silent, and none is left at its default."""
    torch.manual_seed(0)
    net = DiT(**{"in_channels": 3, "image_size": 16, "channels": 24, "depth": 3, "heads": 2} | options).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            fan_in = parameter[0].numel() if name.endswith("weight") else 4
            parameter.normal_(0, fan_in**-0.5)
    return net.requires_grad_(False)


def theirs(net, image_size):
    """DiTTransformer2DModel with the weights of ours."""
    channels, heads = net.stem.out_channels, net.blocks[0].attention.heads
    other = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=channels // heads,
        in_channels=net.in_channels,
        out_channels=net.head.out_features // net.patch_size**2,
        num_layers=len(net.blocks),
        sample_size=image_size,
        patch_size=net.patch_size,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,  # as published; its default is 1e-5
    )
    own, tensors = net.state_dict(), {}
    for i in range(len(net.blocks)):
        for kind in ("weight", "bias"):
            for ours, name in NAMES.items():
                if f"{ours}.{kind}".format(i=i) in own:
                    tensors[f"{name}.{kind}".format(i=i)] = own[f"{ours}.{kind}".format(i=i)]
            parts = own[f"blocks.{i}.attention.qkv.{kind}"].chunk(3)
            tensors |= {f"transformer_blocks.{i}.attn1.to_{k}.{kind}": p for k, p in zip("qkv", parts, strict=True)}
        # The published frequencies are 10000^(-k / half); it divides by half - 1.
        other.transformer_blocks[i].norm1.emb.time_proj.downscale_freq_shift = 0
    other.load_state_dict(tensors)  # strict: each of its tensors is ours
    assert sum(p.numel() for p in net.parameters()) == sum(tensors[n].numel() for n in counted(tensors))
    return other.eval()


def counted(tensors):
    """The names of their tensors, the embedding of the condition once."""
    return [name for name in tensors if ".norm1.emb." not in name or ".0.norm1." in name]


def batch(channels, *size, n=4):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, *size, generator=draw)
    return x, torch.tensor([0.0, 3.0, 250.5, 999.0])[:n], torch.tensor([4, 0, CLASSES, 2])[:n]  # one null label


# The network of others.


@pytest.mark.parametrize("learned_variance", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("size", [8, 16, 24])
def test_the_output_is_that_of_diffusers(patch_size, heads, learned_variance, size):
    """At the nominal size, 16, and at others."""
    net = awake(patch_size=patch_size, heads=heads, learned_variance=learned_variance, num_classes=CLASSES)
    x, c, y = batch(3, size, size)
    with torch.no_grad():
        expected = theirs(net, 16)(x, c, y).sample
    found = net.outputs(x, c, y)
    assert found.shape == (4, 6 if learned_variance else 3, size, size)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert torch.equal(net(x, c, y), found[:, :3])


def test_no_label_and_no_classes():
    """Without a label it is the null row; without classes, a network of theirs whose rows are all zero."""
    net = awake(num_classes=CLASSES)
    x, c, _ = batch(3, 16, 16)
    with torch.no_grad():
        expected = theirs(net, 16)(x, c, torch.full((4,), CLASSES)).sample
    assert float((net(x, c) - expected).abs().max() / expected.abs().max()) < 1e-5
    plain = awake()
    net.load_state_dict(plain.state_dict() | {"embed.label.weight": torch.zeros(CLASSES + 1, 24)})
    torch.testing.assert_close(plain(x, c), net(x, c), rtol=0, atol=0)


# Its sizes.


@pytest.mark.parametrize(
    ("channels", "depth", "heads", "published"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_the_number_of_parameters_is_the_published(channels, depth, heads, published):
    """Table 1 of the paper, in millions, 32 x 32 x 4 latents, 1000 classes; the formula of each layer."""
    with torch.device("meta"):
        net = DiT(4, 32, channels=channels, depth=depth, heads=heads, num_classes=1000, learned_variance=True)
    count = sum(p.numel() for p in net.parameters())

    def linear(i, o):
        return i * o + o

    width = 4 * channels
    block = linear(channels, 3 * channels) + linear(channels, channels) + linear(channels, 6 * channels)
    block += linear(channels, width) + linear(width, channels)
    ends = linear(4 * 2**2, channels) + linear(channels, 8 * 2**2) + linear(channels, 2 * channels)
    condition = linear(256, channels) + linear(channels, channels) + 1001 * channels
    assert count == depth * block + ends + condition
    assert abs(count / 1e6 - published) < 1


@pytest.mark.parametrize(
    ("channels", "depth", "heads", "published"), [(384, 12, 6, 32_963_360), (1152, 28, 16, 675_129_632)]
)
def test_the_number_of_parameters_to_the_last(channels, depth, heads, published):
    """As the published code counts: the fixed table of its 16 x 16 places is one of its parameters."""
    with torch.device("meta"):
        net = DiT(4, 32, channels=channels, depth=depth, heads=heads, num_classes=1000, learned_variance=True)
    assert sum(p.numel() for p in net.parameters()) + 16 * 16 * channels == published


def test_the_default_is_s_2():
    with torch.device("meta"):
        net = DiT(num_classes=1000)
    assert (net.patch_size, net.stem.out_channels, len(net.blocks), net.blocks[0].attention.heads) == (2, 384, 12, 6)


# How it starts.


def test_the_initialisation_is_the_published():
    torch.manual_seed(0)
    net = DiT(4, 16, channels=256, depth=2, heads=4, num_classes=100)
    block = net.blocks[1]
    for layer in (block.attention.qkv, block.attention.proj, block.mlp[0], block.mlp[2], net.stem):
        weight = layer.weight.detach().flatten(1)
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.99 * bound < weight.abs().max() <= bound
        # of a uniform law; its fourth moment gives the error of n squares' mean: sqrt(4 / 5 / n)
        mean_square = float(weight.square().mean()) / (bound**2 / 3)
        assert abs(mean_square - 1) < 5 * math.sqrt(0.8 / weight.numel())
    for layer in (net.embed.mlp[0], net.embed.mlp[2], net.embed.label):
        mean_square = float(layer.weight.detach().square().mean()) / 0.02**2
        assert abs(mean_square - 1) < 5 * math.sqrt(2 / layer.weight.numel())
    silent = {name for name, p in net.named_parameters() if not p.any()}
    zero = {"head", "modulate", "blocks.0.modulate", "blocks.1.modulate"}
    assert silent == {n for n, _ in net.named_parameters() if n.endswith("bias")} | {f"{n}.weight" for n in zero}


def test_a_new_block_is_the_identity():
    net = DiT(channels=24, depth=1, heads=2)
    x = torch.randn(2, 5, 24)
    assert torch.equal(net.blocks[0](x, torch.randn(2, 24)), x)


# Its symmetries.


def test_the_places_are_sines_and_cosines():
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.5], [30.0, 7.0]])
    found = module.place_embedding(places, 16)
    for (row, column), values in zip(places.tolist(), found.tolist(), strict=True):
        angles = [[place * 10_000 ** (-k / 4) for k in range(4)] for place in (column, row)]
        expected = [wave(angle) for axis in angles for wave in (math.sin, math.cos) for angle in axis]
        assert values == pytest.approx(expected, abs=1e-5)  # float32 holds an angle of 30 to 2e-6


def test_a_place_is_the_same_at_every_size():
    """Twice the size has the places of the nominal one at every second patch, on either side."""
    net = awake()
    places = {(h, w): net._places(torch.zeros(1, 24, h, w)).unflatten(0, (h, w)) for h in (8, 16) for w in (8, 16)}
    assert torch.equal(places[16, 16][::2, ::2], places[8, 8])
    assert torch.equal(places[16, 8][::2], places[8, 8])
    assert torch.equal(places[8, 16][:, ::2], places[8, 8])
    assert len(places[16, 16].flatten(0, 1).unique(dim=0)) == 256  # and no two are the same


def without_places(monkeypatch, **options):
    monkeypatch.setattr(module, "place_embedding", lambda places, dim: torch.zeros(len(places), dim))
    net = awake(**options).double()
    x, c, _ = batch(3, 8, 12)
    return net, x.double(), c.double()


def cut(x, side):
    """(B, C, H, W) -> (B, C, rows, side, columns, side)."""
    return x.unflatten(3, (-1, side)).unflatten(2, (-1, side))


@pytest.mark.parametrize("patch_size", [2, 4])
def test_patches_are_known_by_their_places_alone(monkeypatch, patch_size):
    """Without the places, a permutation of the rows and columns of patches permutes the output; with them not."""
    x, c, _ = batch(3, 8, 12)
    rows, columns = (torch.randperm(n // patch_size, generator=torch.Generator().manual_seed(n)) for n in (8, 12))

    def permuted(image):
        return cut(image, patch_size)[:, :, rows][:, :, :, :, columns].reshape(image.shape)

    with_places = awake(patch_size=patch_size)
    assert not torch.allclose(with_places(permuted(x), c), permuted(with_places(x, c)), atol=1e-2)
    net, x, c = without_places(monkeypatch, patch_size=patch_size)
    torch.testing.assert_close(net(permuted(x), c), permuted(net(x, c)), rtol=1e-9, atol=1e-9)


def test_a_tiling_has_the_output_of_its_tile(monkeypatch):
    """Attention is a mean over the tokens: without the places, each of them four times is the same mean."""
    net, x, c = without_places(monkeypatch)
    tiled = net(x.repeat(1, 1, 2, 2), c)
    torch.testing.assert_close(tiled, net(x, c).repeat(1, 1, 2, 2), rtol=1e-9, atol=1e-9)


def test_an_image_is_seen_whole():
    """Every input pixel moves every output pixel, on images that are not square too."""
    net = awake()
    x = batch(3, 6, 10, n=1)[0].requires_grad_()
    out = net(x, torch.ones(1))
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out[0, 0, 0, 0], x)
    assert (gradient.abs() > 0).all()


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, r"24 channels cannot be split into 5 attention heads; choose a divisor"),
        ({"channels": 18}, r"18 channels cannot hold sines and cosines of rows and columns; choose a multiple of 4"),
        (
            {"patch_size": 3},
            r"an image of 16 x 16 pixels cannot be cut into patches of 3 x 3; choose a patch_size that divides both "
            r"sides, or crop or pad the image",
        ),
        *[
            ({name: 0}, rf"{name} 0.*: all must be at least 1")
            for name in ("in_channels", "image_size", "patch_size", "channels", "depth", "heads", "mlp_ratio")
        ],
    ],
)
def test_a_network_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        awake(**options)


@pytest.mark.parametrize("size", [(16, 6), (6, 16), (15, 15), (2, 4)])
def test_an_image_of_parts_of_patches_is_refused(size):
    with pytest.raises(ValueError, match=rf"an image of {size[0]} x {size[1]} pixels cannot be cut into patches of 4"):
        awake(patch_size=4)(torch.zeros(1, 3, *size), torch.ones(1))
