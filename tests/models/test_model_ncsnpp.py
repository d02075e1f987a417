"""What is particular to the networks of score SDEs: resampling by a filter, and their sizes."""

import pytest
import torch
from torch.nn import functional

from models import NCSNpp
from models.resample import FIRDownConv, Resample

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
MILLIONS = {"vp_ddpmpp": 61.8, "ve_ncsnpp": 62.8, "vp_ddpmpp_deep": 106.6, "ve_ncsnpp_deep": 107.6}


def filtered(row, before, after):
    """A row of pixels, padded with zeros and convolved with the taps."""
    padded = functional.pad(row, (before, after))
    return torch.stack([sum(TAPS[j] * padded[i + j] for j in range(4)) for i in range(len(padded) - 3)])


def test_the_filter_by_hand_in_one_dimension():
    """On images that are products of a row and a column the filter is one of each."""
    row, column = torch.randn(6), torch.randn(4)
    image = torch.outer(column, row)[None, None]
    down = Resample("down", (1, 3, 3, 1))(image)[0, 0]
    torch.testing.assert_close(down, torch.outer(filtered(column, 1, 1)[::2], filtered(row, 1, 1)[::2]))

    def spread(line):
        return torch.stack([line, torch.zeros_like(line)], 1).flatten()

    up = Resample("up", (1, 3, 3, 1))(image)[0, 0]
    expected = torch.outer(2 * filtered(spread(column), 2, 1), 2 * filtered(spread(row), 2, 1))
    torch.testing.assert_close(up, expected)


@pytest.mark.parametrize("kernel", [None, (1, 3, 3, 1), (1, 1), (1, 2, 1)])
def test_resampling_keeps_a_constant_away_from_the_border(kernel):
    flat = torch.full((2, 3, 8, 8), 0.7)
    for direction, size in (("up", 16), ("down", 4)):
        out = Resample(direction, kernel)(flat)
        assert out.shape == (2, 3, size, size)
        inner = out[..., 2:-2, 2:-2] if direction == "up" else out[..., 1:-1, 1:-1]
        torch.testing.assert_close(inner, torch.full_like(inner, 0.7))


def test_the_filtered_convolution_is_the_filter_and_then_the_convolution():
    layer, x = FIRDownConv(3, 5, (1, 3, 3, 1)), torch.randn(2, 3, 8, 8)
    kernel = torch.outer(TAPS, TAPS).expand(3, 1, 4, 4)
    smooth = functional.conv2d(functional.pad(x, (2, 2, 2, 2)), kernel, groups=3)
    torch.testing.assert_close(layer(x), functional.conv2d(smooth, layer.conv.weight, layer.conv.bias, stride=2))
    assert layer(x).shape == (2, 5, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "resnet"}, "unknown block 'resnet'; choose from 'biggan', 'ddpm'"),
        ({"progressive": "output_skip"}, "unknown progressive 'output_skip'"),
        ({"embedding": "fourrier"}, "unknown embedding 'fourrier'.*did you mean 'fourier'"),
        ({"image_size": 20, "channel_mult": (1, 1, 1, 1)}, "an image of size 20 cannot be halved 3 times"),
        ({"channel_mult": ()}, "use fewer levels"),
        ({"scale_by_sigma": True}, "give embedding 'fourier'"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        NCSNpp(**{"channels": 16} | changes)
