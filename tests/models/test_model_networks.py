"""What every network of the registry promises, and what is particular to the U-Net and the MLP."""

import inspect

import oracles
import pytest
import torch

from models import MLP, MODELS, UNet
from models.layers import Downsample, SelfAttention

SMALL = {
    "unet": (
        {"image_size": 8, "channels": 16, "channel_mult": (1, 2), "res_blocks": 1, "attention_resolutions": (4,)},
        (3, 8, 8),
    ),
    "ncsnpp": (
        {"image_size": 8, "channels": 16, "channel_mult": (1, 2), "res_blocks": 1, "attention_resolutions": (4,)},
        (3, 8, 8),
    ),
    "adm": (  # its 32 groups need two channels each: one alone loses what is added to it
        {"image_size": 8, "channels": 64, "channel_mult": (1, 2), "res_blocks": 1, "attention_resolutions": (4,)},
        (3, 8, 8),
    ),
    "dit": ({"image_size": 8, "channels": 24, "depth": 2, "heads": 2}, (3, 8, 8)),
    "mlp": ({"dim": 5, "width": 24, "blocks": 2}, (5,)),
}
"""Small settings and the shape of a sample; an entry without them is tested with its defaults."""


def build(name, **options):
    """A network with small settings, its initially silent parts awakened so that everything matters."""
    torch.manual_seed(0)
    settings, _ = SMALL.get(name, ({}, None))
    net = MODELS[name](**settings | {"dropout": 0.0} | options)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    return net


def sample_shape(name):
    if name in SMALL:
        return SMALL[name][1]
    defaults = {key: p.default for key, p in inspect.signature(MODELS[name]).parameters.items()}
    return (defaults["dim"],) if "dim" in defaults else (defaults["in_channels"], *[defaults["image_size"]] * 2)


def inputs(name, n=4):
    draw = oracles.generator(1)
    return torch.randn(n, *sample_shape(name), generator=draw), torch.tensor([3.0, 999.0, 250.0, 0.5])[:n]


# Every network.


@pytest.mark.parametrize("name", MODELS)
def test_a_new_network_is_silent(name):
    settings, _ = SMALL.get(name, ({}, None))
    net = MODELS[name](**settings)
    x, c = inputs(name)
    for mode in (True, False):
        out = net.train(mode)(x, c)
        assert out.shape == x.shape
        assert not out.any()


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name, classes):
    net = build(name, num_classes=classes)
    x, c = inputs(name)
    if classes:  # all labels, the null one among them
        x, c = x.repeat(11, *[1] * (x.ndim - 1))[:11], c.repeat(3)[:11]
    net(x, c, torch.arange(11) if classes else None).square().sum().backward()
    sizes = {key: 0.0 if p.grad is None else float(p.grad.abs().max()) for key, p in net.named_parameters()}
    # A part whose effect is undone further on still gets rounding errors: 1e-7 of the others.
    assert min(sizes.values()) > 1e-4 * max(sizes.values()), {k: v for k, v in sizes.items() if v < 1e-3}


@pytest.mark.parametrize("name", MODELS)
def test_samples_of_a_batch_do_not_meet(name):
    net = build(name, num_classes=3).double().eval()  # where the order of a sum does not show
    x, c = (value.double() for value in inputs(name))
    y, order = torch.tensor([0, 1, 2, 1]), torch.tensor([2, 0, 3, 1])
    out = net(x, c, y)
    torch.testing.assert_close(net(x[order], c[order], y[order]), out[order], rtol=1e-9, atol=1e-9)
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1], c[i : i + 1], y[i : i + 1])[0], out[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_input_noise_level_and_label_all_matter(name):
    net = build(name, num_classes=3).eval()
    x, c = inputs(name)
    y = torch.tensor([0, 1, 2, 1])
    out = net(x, c, y)
    for other in (net(x + 0.1, c, y), net(x, c + 40, y), net(x, c, (y + 1) % 3)):
        assert ((other - out).abs().flatten(1).amax(1) > 1e-3).all()


@pytest.mark.parametrize("name", MODELS)
def test_no_label_is_the_null_label(name):
    net = build(name, num_classes=3).eval()
    x, c = inputs(name)
    without = net(x, c)
    assert torch.equal(without, net(x, c, None))
    assert torch.equal(without, net(x, c, torch.full((4,), 3)))
    assert torch.equal(without, net(x, c, torch.full((4,), -1)))
    mixed = net(x, c, torch.tensor([-1, 2, -1, 2]))
    torch.testing.assert_close(mixed[::2], without[::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1::2], net(x, c, torch.full((4,), 2))[1::2], rtol=1e-4, atol=1e-5)
    assert all(not torch.allclose(without, net(x, c, torch.full((4,), label))) for label in range(3))


@pytest.mark.parametrize("name", MODELS)
def test_each_attribute_counts_by_itself_and_unknown_ones_do_not(name):
    net = build(name, num_attributes=3).eval()
    x, c = inputs(name)
    unknown = torch.full((4, 3), -1)
    assert torch.equal(net(x, c), net(x, c, unknown))
    outs = [net(x, c)]
    for attribute in range(3):
        for value in (0, 1):
            y = unknown.clone()
            y[:, attribute] = value
            outs.append(net(x, c, y))
    for i, one in enumerate(outs):
        for other in outs[:i]:
            assert ((one - other).abs().flatten(1).amax(1) > 1e-4).all()


@pytest.mark.parametrize("name", MODELS)
def test_an_augmentation_is_told_and_zeros_are_none(name):
    net = build(name, augment_dims=9).eval()
    x, c = inputs(name)
    assert torch.equal(net(x, c), net(x, c, augment=torch.zeros(4, 9)))
    told = net(x, c, augment=torch.randn(4, 9))
    assert ((told - net(x, c)).abs().flatten(1).amax(1) > 1e-4).all()
    with pytest.raises(ValueError, match="an augmentation was told to a network without; build it with augment_dims"):
        build(name)(x, c, augment=torch.zeros(4, 9))


@pytest.mark.parametrize("name", MODELS)
def test_labels_of_another_shape_are_refused(name):
    x, c = inputs(name)
    with pytest.raises(ValueError, match=r"attributes must have shape \(B, 3\), got \(4, 2\)"):
        build(name, num_attributes=3)(x, c, torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"4 samples need classes of shape \(4,\), got \(4, 2\)"):
        build(name, num_classes=3)(x, c, torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="classes or attributes, not both"):
        build(name, num_classes=3, num_attributes=3)


@pytest.mark.parametrize("name", MODELS)
def test_labels_without_classes_are_refused(name):
    x, c = inputs(name)
    with pytest.raises(
        ValueError, match=r"labels were given to a network without; build it with num_classes or num_attributes"
    ):
        build(name)(x, c, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("name", MODELS)
def test_dropout_acts_in_training_only(name):
    net = build(name, dropout=0.5)
    x, c = inputs(name)
    assert torch.equal(net.eval()(x, c), net(x, c))
    net.train()
    assert not torch.allclose(net(x, c), net(x, c))
    still = build(name, dropout=0.0).train()
    assert torch.equal(still(x, c), still(x, c))


@pytest.mark.parametrize("name", MODELS)
def test_a_network_runs_in_double_precision(name):
    net = build(name).eval()
    x, c = inputs(name)
    single = net(x, c)
    double = net.double()(x.double(), c.double())
    assert double.dtype == torch.float64
    # The embedding of the noise level is computed in float32 in both.
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_weights_travel_through_a_state_dict(name):
    first, second = build(name).eval(), build(name).eval()
    x, c = inputs(name)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(first(x, c), second(x, c))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x, c), second(x, c))


# The U-Net.


def unet(**options):
    return UNet(**{"channels": 16, "channel_mult": (1, 2, 2), "res_blocks": 1, "attention_resolutions": ()} | options)


def test_the_default_is_ddpms_cifar10_network():
    """35.7 million parameters (arXiv 2006.11239, appendix B): 35,746,307 in its code."""
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet().parameters()) == 35_746_307


def test_the_count_of_parameters_by_hand():
    """One level, one block, no attention but the middle's, 4 channels, 2 image channels."""

    def conv(i, o, k=3):
        return o * i * k * k + o

    def linear(i, o):
        return i * o + o

    def block(i, o, emb):
        shortcut = 0 if i == o else conv(i, o, 1)
        return 2 * i + conv(i, o) + linear(emb, o) + 2 * o + conv(o, o) + shortcut

    c, emb = 4, 16
    attention = 2 * c + conv(c, 3 * c, 1) + conv(c, c, 1)
    total = linear(c, emb) + linear(emb, emb) + conv(2, c)  # embedding and stem
    total += block(c, c, emb)  # encoder
    total += 2 * block(c, c, emb) + attention  # middle
    total += 2 * block(2 * c, c, emb)  # decoder
    total += 2 * c + conv(c, 2)  # output
    net = UNet(2, 8, channels=c, channel_mult=(1,), res_blocks=1, attention_resolutions=())
    assert sum(p.numel() for p in net.parameters()) == total


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (9, 5), (1, 1), (16, 4), (13, 30)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_shape_of_the_image_is_kept(channels, size):
    net = unet(in_channels=channels, image_size=16, attention_resolutions=(8,))
    x = torch.randn(2, channels, *size)
    assert net(x, torch.ones(2)).shape == x.shape


@pytest.mark.parametrize(
    ("image_size", "wanted", "found"),
    [
        (32, (16,), {16}),
        (32, (32, 8), {32, 8}),
        (32, (), set()),
        (32, (5, 64), set()),
        (28, (14, 7), {14, 7}),
        (9, (5, 3), {5, 3}),  # odd sizes are rounded up
    ],
)
def test_attention_stands_exactly_where_it_was_asked_for(image_size, wanted, found):
    sizes, shapes = set(), {}
    net = unet(image_size=image_size, attention_resolutions=wanted).eval()
    for name, module in net.named_modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda m, args, out, name=name: shapes.update({name: tuple(out.shape[2:])}))
    net(torch.randn(1, 3, image_size, image_size), torch.ones(1))
    in_middle = {name for name in shapes if name.startswith("middle")}
    assert in_middle == {"middle.0.attention"}
    for name, (height, width) in shapes.items():
        if name not in in_middle:
            assert height == width
            assert name.split(".")[1].startswith(f"{height}x{height}_")
            sizes.add(height)
    assert sizes == found
    # At each of them one in the encoder's one block, and one in each of the decoder's two.
    assert len(shapes) == 1 + 3 * len(found)


def test_the_levels_are_as_wide_and_as_deep_as_asked():
    net = UNet(3, 16, channels=8, channel_mult=(1, 3, 2), res_blocks=2, attention_resolutions=())
    shapes = {}
    for key, layer in [*net.encoder.items(), *net.decoder.items()]:
        layer.register_forward_hook(
            lambda m, args, out, key=key: shapes.setdefault(key, []).append(tuple(out.shape[1:]))
        )
    net(torch.randn(1, 3, 16, 16), torch.ones(1))
    for size, width in ((16, 8), (8, 24), (4, 16)):
        for block in (0, 1):  # of the encoder and the decoder
            assert shapes[f"{size}x{size}_block{block}"] == [(width, size, size)] * 2
        assert shapes[f"{size}x{size}_block2"] == [(width, size, size)]
    assert shapes["16x16_down"] == [(8, 8, 8)]
    assert shapes["8x8_down"] == [(24, 4, 4)]
    assert shapes["4x4_up"] == [(16, 8, 8)]
    assert shapes["8x8_up"] == [(24, 16, 16)]
    assert sum(isinstance(m, Downsample) for m in net.modules()) == 2


def test_every_skip_is_used():
    """Each block of the encoder reaches the output past the bottleneck: with that cut, all still have gradients."""
    torch.manual_seed(0)
    net = unet(image_size=8)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    net.middle[-1].register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    net(torch.randn(2, 3, 8, 8), torch.tensor([1.0, 500.0])).square().sum().backward()
    silent = [key for key, p in net.encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    assert all(p.grad is None or not p.grad.any() for p in net.middle.parameters())


def test_an_image_is_seen_whole():
    """Through the bottleneck's attention every input pixel moves every output pixel."""
    net = build("unet").eval()
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x, torch.ones(1))[0, 0, 0, 0], x)
    assert (gradient.abs() > 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"channel_mult": ()},
        {"channels": 0},
        {"res_blocks": 0},
        {"in_channels": 0},
        {"image_size": 0},
        {"channel_mult": (1, 0)},
    ],
)
def test_a_unet_of_nothing_is_refused(options):
    with pytest.raises(ValueError, match=r"all must be at least 1, with at least one level"):
        UNet(**options)


def test_more_levels_than_halvings_are_refused():
    with pytest.raises(ValueError, match=r"an image of size 4 cannot be halved 3 times; use fewer levels"):
        unet(image_size=4, channel_mult=(1, 1, 1, 1))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"16 channels cannot be split into 3 attention heads; choose a divisor"):
        unet(image_size=8, channel_mult=(1,), heads=3)


# The MLP.


@pytest.mark.parametrize("dim", [1, 2, 50])
def test_an_mlp_takes_vectors_of_any_dimension(dim):
    assert MLP(dim, width=8, blocks=1)(torch.randn(3, dim), torch.ones(3)).shape == (3, dim)


def test_the_mlp_has_the_asked_width_and_depth():
    net = MLP(3, width=16, blocks=4)
    embed = 2 * (16 * 16 + 16)
    block = 2 * 16 + 3 * (16 * 16 + 16)
    assert sum(p.numel() for p in net.parameters()) == embed + (3 * 16 + 16) + 4 * block + 2 * 16 + (16 * 3 + 3)


def test_the_mlp_is_its_formula():
    """h <- h + W2 act(W1 norm(h) + W3 act(embedding)), from the stem to head(act(norm(h)))."""
    net = build("mlp", num_classes=2).eval()
    x, c = inputs("mlp")
    y = torch.tensor([0, 1, 1, 0])

    def act(h):
        return h * torch.sigmoid(h)

    def norm(h, layer):
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return h * layer.weight + layer.bias

    def linear(h, layer):
        return h @ layer.weight.T + layer.bias

    embedding, h = net.embed(c, y), linear(x, net.stem)
    for block in net.blocks:
        hidden = linear(norm(h, block.norm), block.linear1) + linear(act(embedding), block.modulate)
        h = h + linear(act(hidden), block.linear2)
    torch.testing.assert_close(net(x, c, y), linear(act(norm(h, net.norm)), net.head), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"dim": 0}, {"width": 0}, {"blocks": 0}])
def test_an_mlp_of_nothing_is_refused(options):
    with pytest.raises(ValueError, match=r"all must be at least 1"):
        MLP(**options)
