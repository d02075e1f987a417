"""Pictures: every pixel where it belongs."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from data import Quantizer
from evaluation import density_picture, image_grid, picture, save_picture

FRAME = 2


def some_images(n, channels, height, width, levels=256):
    generator = torch.Generator().manual_seed(0)
    v = torch.randint(levels, (n, channels, height, width), generator=generator)
    quantizer = Quantizer(levels=levels)
    return quantizer.dequantize(v, generator), (v * 255 / (levels - 1)).round().to(torch.uint8), quantizer


@pytest.mark.parametrize(
    ("n", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (4, 2, 2), (5, 2, 3), (7, 3, 3), (64, 8, 8)]
)
@pytest.mark.parametrize(("channels", "side", "scale"), [(3, 64, 1), (1, 8, 8), (3, 40, 1), (1, 24, 2)])
def test_every_image_stands_at_its_place_in_a_grey_grid(n, rows, columns, channels, side, scale):
    x, pixels, quantizer = some_images(n, channels, side, side)
    grid = image_grid(x, quantizer)
    cell = side * scale + FRAME
    assert grid.dtype == np.uint8
    assert grid.shape == (rows * cell + FRAME, columns * cell + FRAME, 3)
    rest = np.ones(grid.shape[:2], dtype=bool)
    for i in range(n):
        top, left = FRAME + (i // columns) * cell, FRAME + (i % columns) * cell
        inside = (slice(top, top + side * scale), slice(left, left + side * scale))
        shown = grid[inside].reshape(side, scale, side, scale, 3)
        expected = pixels[i].permute(1, 2, 0).numpy()[:, None, :, None, :]
        assert (shown == expected).all()  # grey is the same in red, green and blue
        rest[inside] = False
    assert (grid[rest] == 128).all()


def test_levels_are_spread_over_black_to_white():
    x, pixels, quantizer = some_images(3, 1, 70, 70, levels=17)
    assert pixels.min() == 0
    assert pixels.max() == 255
    grid = image_grid(x, quantizer)
    assert (grid[FRAME : FRAME + 70, FRAME : FRAME + 70, 1] == pixels[0, 0].numpy()).all()


def test_oblong_images_and_other_numbers_of_channels():
    x, pixels, quantizer = some_images(2, 2, 32, 64)
    grid = image_grid(x, quantizer)
    assert grid.shape == (32 + 2 * FRAME, 2 * 64 + 3 * FRAME, 3)
    assert (grid[FRAME:-FRAME, FRAME : FRAME + 64, 2] == pixels[0, 0].numpy()).all()  # the first channel


def test_values_beyond_the_range_are_black_or_white():
    x = torch.tensor([-7.0, 7.0]).view(1, 1, 1, 2).expand(1, 1, 64, 2).repeat_interleave(32, 3)
    grid = image_grid(x, Quantizer())
    assert grid[10, FRAME + 5].tolist() == [0, 0, 0]
    assert grid[10, FRAME + 60].tolist() == [255, 255, 255]


def test_a_density_is_dark_where_the_points_are():
    points = torch.tensor([[2.5, 2.5]] * 75 + [[-2.5, 1.5]] * 25)
    shown = density_picture(points, extent=3, size=100)  # 10 x 10 bins of 10 pixels
    assert shown.shape == (100, 100, 3)
    assert (shown[:10, 90:] == 0).all()  # right and up
    assert (shown[20:30, :10] == int(255 * (1 - math.sqrt(25 / 75)))).all()  # left, and less high
    rest = np.ones((100, 100), dtype=bool)
    rest[:10, 90:] = rest[20:30, :10] = False
    assert (shown[rest] == 255).all()


@pytest.mark.parametrize("points", [torch.zeros(1, 2), torch.full((5, 2), 99.0), torch.randn(1000, 7)])
def test_a_density_of_few_far_or_many_dimensional_points(points):
    shown = density_picture(points)
    assert shown.shape == (256, 256, 3)
    assert (shown.min() < 255) == bool((points[:, :2].abs() <= 3).all(1).any())


def test_the_picture_is_that_of_the_kind_of_data(tmp_path):
    x, _, quantizer = some_images(3, 3, 64, 64)
    assert (picture(x, quantizer) == image_grid(x, quantizer)).all()
    points = torch.randn(500, 2)
    assert (picture(points, None) == density_picture(points)).all()
    path = save_picture(picture(x, quantizer), tmp_path / "a" / "b.png")
    assert path == tmp_path / "a" / "b.png"
    assert (np.asarray(Image.open(path)) == image_grid(x, quantizer)).all()
