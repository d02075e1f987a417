"""EDM's augmentation: what is drawn, what is told, and what is done."""

import math

import pytest
import torch

from data.augmentation import AUGMENTATION_DIMS, MOVE, SCALE, STRETCH, Augmentation, Drawn, transform
from data.draws import StepDraws

SHAPE = (28, 36)  # height and width, of which neither is the other


def drawn(batch=1, **what):
    """Nothing, but for what is named."""
    values = {name: torch.zeros(batch) for name in Drawn._fields}
    return Drawn(**values | {name: torch.full((batch,), float(value)) for name, value in what.items()})


def coordinates(height, width):
    """Places of the pixels from the centre: x to the right, y down."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return x, y


def blob(x, y):
    """A smooth picture that has no symmetry, near 0 at the border."""
    return torch.exp(-((x - 2) ** 2 + (y + 1) ** 2) / 14) + 0.5 * torch.exp(-((x + 3) ** 2 + 0.5 * (y - 3) ** 2) / 8)


def moved_blob(done, height, width):
    """The picture after what was drawn, from the definition, and where it shows what was inside the old one.

    Each step is undone, from the last to the first.
    """
    x, y = coordinates(height, width)
    x, y = x - MOVE * width * done.move_x, y - MOVE * height * done.move_y
    c, s = done.direction.cos(), done.direction.sin()
    along, across = (c * x + s * y) / 2 ** (STRETCH * done.stretch), (c * y - s * x) * 2 ** (STRETCH * done.stretch)
    x, y = c * along - s * across, s * along + c * across
    c, s = done.turn.cos(), done.turn.sin()
    x, y = c * x + s * y, c * y - s * x
    growth = 2 ** (SCALE * done.scale)
    x, y = x / growth, y / growth
    inside = (x.abs() < width / 2 - 2) & (y.abs() < height / 2 - 2)
    return blob(torch.where(done.flip_x > 0, -x, x), torch.where(done.flip_y > 0, -y, y)), inside


CASES = {
    "nothing": {},
    "flips": {"flip_x": 1, "flip_y": 1},
    "grown": {"scale": 1.5},
    "shrunk": {"scale": -1.5},
    "turned": {"turn": 0.6},
    "turned back": {"turn": -2.5},
    "stretched": {"stretch": 1.2},
    "stretched askew": {"stretch": -1.2, "direction": 0.7},
    "moved": {"move_x": 0.8, "move_y": -0.5},
    "all": {
        **{"flip_x": 1, "scale": 0.7, "turn": 0.9, "stretch": 0.8, "direction": -1.1},
        **{"move_x": -0.3, "move_y": 0.4},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_an_image_moves_as_is_told(case):
    done = drawn(**CASES[case])
    image = blob(*coordinates(*SHAPE)).expand(1, 2, *SHAPE)
    result = transform(image, done)
    expected, inside = moved_blob(done, *SHAPE)
    error = (result - expected).abs()[..., inside]
    assert error.max() < 0.04  # of a height of 1: the mean over a pixel, and bicubic interpolation
    assert error.mean() < 0.003
    if case == "nothing":
        assert torch.equal(result, image)
    else:
        assert (image - expected).abs().max() > 0.15


def test_flips_are_exact_and_only_moved_images_are_resampled():
    x = torch.randn(4, 3, 9, 7)
    done = Drawn(*(torch.zeros(4) for _ in Drawn._fields))
    done = done._replace(flip_x=torch.tensor([0.0, 1, 1, 0]), flip_y=torch.tensor([0.0, 0, 1, 0]))
    done = done._replace(turn=torch.tensor([0.0, 0, 0, 0.3]))
    result = transform(x, done)
    assert torch.equal(result[:3], torch.stack([x[0], x[1].flip(-1), x[2].flip(-1).flip(-2)]))
    assert not torch.allclose(result[3], x[3], atol=0.1)


def test_a_quarter_turn_and_whole_pixels_agree_with_their_exact_counterparts():
    """Smooth noise: what is left is the mean over four points of a pixel."""
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.randn(2, 1, 6, 6), size=(48, 48), mode="bicubic")
    turned = transform(x, drawn(2, turn=math.pi / 2))
    torch.testing.assert_close(turned, x.rot90(-1, (2, 3)), atol=0.03, rtol=0)  # from x towards y, which is down
    shifted = transform(x, drawn(2, move_x=3 / (48 * MOVE), move_y=-5 / (48 * MOVE)))
    inside = (slice(None), slice(None), slice(8, 40), slice(8, 40))
    torch.testing.assert_close(shifted[inside], x.roll((-5, 3), (2, 3))[inside], atol=0.03, rtol=0)


def test_beyond_the_border_is_the_mirror_image():
    x = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 16, 16)
    shifted = transform(x, drawn(move_x=4 / (16 * MOVE)))[0, 0, 8]
    torch.testing.assert_close(shifted[6:16], x[0, 0, 8, 2:12], atol=1e-4, rtol=0)
    torch.testing.assert_close(shifted[:2], torch.tensor([3.0, 2.0]), atol=1e-4, rtol=0)


def test_conditions_are_the_nine_numbers():
    done = drawn(flip_x=1, flip_y=1, scale=0.5, turn=0.3, stretch=-0.7, direction=0.4, move_x=0.2, move_y=-0.1)
    expected = [1, 1, 0.5, math.cos(0.3) - 1, math.sin(0.3), -0.7 * math.cos(0.4), -0.7 * math.sin(0.4), 0.2, -0.1]
    torch.testing.assert_close(done.conditions(), torch.tensor([expected]))
    assert not drawn(direction=0.4).conditions().any()  # a direction alone does nothing
    assert done.conditions().shape == (1, AUGMENTATION_DIMS)


def test_the_laws_of_what_is_drawn():
    n, p = 40_000, 0.15
    done = Augmentation(p).draw(n, torch.Generator().manual_seed(0))

    def close(share, expected):
        return abs(float(share) - expected) < 5 * math.sqrt(expected * (1 - expected) / n)

    assert close(done.flip_x.mean(), 0.5)
    assert close(done.flip_y.mean(), p / 2)
    for values in (done.scale, done.turn, done.stretch, done.move_x, done.move_y):
        assert close((values != 0).double().mean(), p)
    assert close((done.direction != 0).double().mean(), 0.5)
    assert torch.equal(done.move_x != 0, done.move_y != 0)
    for values in (done.scale, done.stretch, done.move_x, done.move_y):
        chosen = values[values != 0]
        assert abs(chosen.mean()) < 5 / len(chosen) ** 0.5
        assert abs(chosen.var() - 1) < 5 * (2 / len(chosen)) ** 0.5
    for angles in (done.turn, done.direction):
        chosen = angles[angles != 0] / math.pi
        assert chosen.abs().max() <= 1
        assert abs(chosen.square().mean() - 1 / 3) < 5 * (4 / 45 / len(chosen)) ** 0.5
    switched = torch.stack([v != 0 for v in (done.scale, done.turn, done.stretch, done.move_x)]).double()
    assert (torch.corrcoef(switched) - torch.eye(4)).abs().max() < 5 / n**0.5


def test_without_probability_there_are_flips_only():
    x = torch.randn(64, 3, 8, 8)
    result, told = Augmentation(0.0)(x, StepDraws(0, 0, len(x), range(len(x))))
    flipped = told[:, 0] == 1
    assert 0 < flipped.sum() < 64
    assert torch.equal(result, torch.where(flipped.view(-1, 1, 1, 1), x.flip(-1), x))
    assert not told[:, 1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_generator_decides_all(dtype):
    x = torch.randn(8, 1, 10, 12, dtype=dtype)
    one, two = (Augmentation(0.5)(x, StepDraws(3, 0, len(x), range(len(x)))) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert one[0].dtype == one[1].dtype == dtype
    assert not torch.equal(one[0], Augmentation(0.5)(x, StepDraws(4, 0, len(x), range(len(x))))[0])


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_wrong_probability(probability):
    with pytest.raises(ValueError, match=r"the probability of an augmentation is .*; it must lie in \[0, 1\]"):
        Augmentation(probability)


@pytest.mark.parametrize("x", [torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
def test_other_input_is_refused(x):
    with pytest.raises(ValueError, match=r"images \(B, C, H, W\) in floating point are augmented, got"):
        Augmentation(0.1)(x, StepDraws(0, 0, len(x), range(len(x))))
