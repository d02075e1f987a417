"""Counted operations against the formulas of the layers, and a published network against its figure."""

import pytest
import torch
from torch import nn

from configs import song_cifar10
from data import Quantizer, TensorDataset
from models import MLP, DiT, ScoreModel, UNet, recompute_blocks
from sde_lib import VPSDE
from training import builders, quantity, training_flops


class Convolutions(nn.Module):
    """3x3 with stride 2, a fixed filter for each of 4 groups, and a transposed one back to the size."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.Conv2d(8, 12, 5, padding=2, groups=4, bias=False).requires_grad_(False),
            nn.SiLU(),
            nn.ConvTranspose2d(12, 3, 2, stride=2),
        )

    def forward(self, x, c_noise, y=None):
        return self.layers(x)


class Attention(nn.Module):
    """One projection to q, k, v of d, 4 heads, one back."""

    def __init__(self, d):
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x, c_noise, y=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_convolution_has_two_operations_for_each_weight_and_place():
    first = 2 * (8 * 3 * 9) * 8 * 10  # 16 x 20 pixels, halved
    grouped = 2 * (12 * 2 * 25) * 8 * 10
    transposed = 2 * (12 * 3 * 4) * 8 * 10
    forward, backward = training_flops(ScoreModel(Convolutions(), VPSDE()), (3, 16, 20))
    assert forward == first + grouped + transposed
    # as much for the weights, and as much again for the inputs; data need no gradient, and fixed weights neither
    assert backward == first + grouped + 2 * transposed


@pytest.mark.parametrize("tokens", [7, 64])
def test_attention_has_two_products_of_the_tokens_and_its_projections(tokens):
    d = 32
    projections = 2 * tokens * d * 3 * d + 2 * tokens * d * d
    products = 2 * (2 * tokens**2 * d)
    forward, backward = training_flops(ScoreModel(Attention(d), VPSDE()), (tokens, d))
    assert forward == projections + products
    assert backward == 2 * forward - 2 * tokens * d * 3 * d  # the data need no gradient


def unet_formula(size, width, mult, blocks, attended):
    """Of DDPM's U-Net: two operations for each weight and place, and the products of attention."""
    total, sizes, skips = 0, size, [width]
    embedded = 4 * width

    def conv(inside, outside, side, kernel=3):
        return 2 * inside * outside * kernel**2 * side**2

    def block(inside, outside, side):
        shortcut = conv(inside, outside, side, 1) if inside != outside else 0
        return conv(inside, outside, side) + conv(outside, outside, side) + shortcut + 2 * embedded * outside

    def attention(channels, side):
        return conv(channels, 4 * channels, side, 1) + 4 * side**4 * channels

    total += 2 * width * embedded + 2 * embedded**2 + conv(3, width, sizes)
    now = width
    for level, factor in enumerate(mult):
        for _ in range(blocks):
            total += block(now, factor * width, sizes) + (attention(factor * width, sizes) if sizes in attended else 0)
            now = factor * width
            skips.append(now)
        if level < len(mult) - 1:
            sizes //= 2
            total += conv(now, now, sizes)
            skips.append(now)
    total += 2 * block(now, now, sizes) + attention(now, sizes)
    for level, factor in reversed(list(enumerate(mult))):
        for _ in range(blocks + 1):
            total += block(now + skips.pop(), factor * width, sizes)
            total += attention(factor * width, sizes) if sizes in attended else 0
            now = factor * width
        if level:
            sizes *= 2
            total += conv(now, now, sizes)
    return total + conv(now, 3, sizes)


def test_ddpms_unet_has_the_operations_of_its_layers():
    with torch.device("meta"):
        model = ScoreModel(UNet(3, 32), VPSDE())
    flops = training_flops(model, (3, 32, 32))
    assert flops.forward == unet_formula(32, 128, (1, 2, 2, 2), 2, (16,))
    data_gradient = 2 * 3 * 128 * 9 * 32**2 + 2 * 128 * 512  # of the first layers of image and time: not needed
    assert flops.backward == 2 * flops.forward - data_gradient
    assert flops.total == flops.forward + flops.backward


def test_songs_ddpm_has_the_operations_counted_in_its_own_code():
    """12.04 GFLOP forward and 36.12 with its gradient: torch's counter on score_sde_pytorch's network for CIFAR-10."""
    images = TensorDataset("images", torch.zeros(2, 3, 32, 32, dtype=torch.uint8), quantizer=Quantizer())
    with torch.device("meta"):
        model = builders.build_model(song_cifar10.get_config("vp_ddpm"), images, torch.device("cpu"))
    flops = training_flops(model, images.shape)
    assert flops.forward == pytest.approx(12.04e9, rel=5e-4)
    assert flops.total == pytest.approx(36.12e9, rel=5e-4)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: MLP(2, width=32, blocks=2), (2,)),
        (lambda: DiT(1, 8, channels=24, depth=2, heads=2), (1, 8, 8)),
        (lambda: UNet(1, 8, channels=8, channel_mult=(1,), res_blocks=1, num_classes=3), (1, 8, 8)),
    ],
)
def test_counting_leaves_the_model_as_it_was(make, shape):
    model = ScoreModel(make(), VPSDE(), precision="bfloat16").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    forward, backward = training_flops(model, shape)
    assert forward < backward < 2 * forward
    assert not model.training
    assert model.precision == "bfloat16"
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 FLOP"),
        (999.4, "999 FLOP"),
        (999.6, "1 kFLOP"),
        (36.5e6, "36.5 MFLOP"),
        (12.44e9, "12.4 GFLOP"),
        (999.7e9, "1 TFLOP"),
        (3.5e15, "3.5 PFLOP"),
        (4e18, "4e+03 PFLOP"),
    ],
)
def test_a_quantity_has_three_digits_and_a_prefix(value, text):
    assert quantity(value, "FLOP") == text


def test_what_is_computed_a_second_time_does_not_count():
    model = ScoreModel(UNet(3, 8, channels=8, channel_mult=(1, 2), res_blocks=1), VPSDE())
    once = training_flops(model, (3, 8, 8))
    recompute_blocks(model.net)
    assert training_flops(model, (3, 8, 8)) == once
