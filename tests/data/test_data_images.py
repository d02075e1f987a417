"""Reading one image: orientation, transparency, depth, crops, and damaged files."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import CROPS, load_image, make_transform, no_crop

RNG = np.random.default_rng(0)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def load(path, channels=3, transform=no_crop):
    return load_image(path, channels=channels, transform=transform)


def colour(height=5, width=7):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def celeba_coordinates():
    """A 178 x 218 image whose red channel is the column and whose green channel is the row."""
    rows, columns = np.mgrid[:218, :178]
    return np.stack([columns, rows, 0 * rows], 2).astype(np.uint8)


def test_colour_and_grey_pixels_are_read_as_they_are(tmp_path):
    pixels = colour()
    image = load(save(tmp_path / "a.png", pixels))
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    np.testing.assert_array_equal(image.permute(1, 2, 0), pixels)
    grey = load(save(tmp_path / "b.png", pixels[:, :, 0]), channels=1)
    np.testing.assert_array_equal(grey, pixels[None, :, :, 0])


def test_grey_becomes_colour_and_colour_grey(tmp_path):
    pixels = colour(40, 40)
    from_grey = load(save(tmp_path / "grey.png", pixels[:, :, 0]))
    np.testing.assert_array_equal(from_grey, np.broadcast_to(pixels[:, :, 0], (3, 40, 40)))
    to_grey = load(save(tmp_path / "colour.png", pixels), channels=1)
    assert np.abs(to_grey[0].numpy() - pixels @ [0.299, 0.587, 0.114]).max() <= 0.51


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = colour()
    image = load(save(tmp_path / "a.png", pixels, exif=exif))
    np.testing.assert_array_equal(image.permute(1, 2, 0), UPRIGHT[orientation](pixels))
    deep = RNG.integers(0, 256, (4, 6)).astype(np.uint16) * 257
    image = load(save(tmp_path / "b.png", deep, exif=exif), channels=1)
    np.testing.assert_array_equal(image[0], UPRIGHT[orientation](deep // 257))


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_on_white(tmp_path, channels):
    grey = RNG.integers(0, 256, (30, 30), dtype=np.uint8)
    alpha = RNG.integers(0, 256, (30, 30), dtype=np.uint8)
    expected = 255 + (grey - 255.0) * (alpha / 255.0)
    for name, layers in (("LA", [grey, alpha]), ("RGBA", [grey, grey, grey, alpha])):
        image = load(save(tmp_path / f"{name}.png", np.stack(layers, 2)), channels=channels)
        assert image.shape == (channels, 30, 30)
        assert np.abs(image.numpy() - expected).max() <= 1


def test_palettes(tmp_path):
    index = RNG.integers(0, 3, (6, 6), dtype=np.uint8)
    palette = np.array([[250, 10, 20], [0, 128, 255], [7, 8, 9]], dtype=np.uint8)
    image = Image.fromarray(index).convert("L")
    image.putpalette(palette.flatten().tolist())
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    image.save(tmp_path / "opaque.gif")
    for name in ("opaque.png", "opaque.gif"):
        np.testing.assert_array_equal(load(tmp_path / name).permute(1, 2, 0), palette[index])
    palette[1] = 255
    np.testing.assert_array_equal(load(tmp_path / "clear.png").permute(1, 2, 0), palette[index])


def test_black_and_white_and_cmyk(tmp_path):
    bits = RNG.integers(0, 2, (5, 9)).astype(bool)
    np.testing.assert_array_equal(load(save(tmp_path / "bits.png", bits), channels=1)[0], 255 * bits)
    Image.new("CMYK", (3, 3), (255, 0, 0, 0)).save(tmp_path / "cyan.tif")
    assert load(tmp_path / "cyan.tif")[:, 0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    deep = np.arange(0, 65536, 97, dtype=np.uint16).reshape(26, 26)
    deep[0, :3] = 0, 65535, 300
    path = save(tmp_path / f"deep.{suffix}", deep)
    expected = np.rint(deep / 257)
    np.testing.assert_array_equal(load(path, channels=1)[0], expected)
    np.testing.assert_array_equal(load(path, channels=3), np.broadcast_to(expected, (3, 26, 26)))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_fixed_range_are_refused(tmp_path, dtype):
    path = save(tmp_path / "depth.tif", np.full((4, 4), 1000, dtype=dtype))
    with pytest.raises(ValueError, match=r"depth\.tif: its 32-bit pixels .* convert it to 8 bits"):
        load(path)


def test_celeba_crops_take_the_published_boxes(tmp_path):
    path = save(tmp_path / "000001.png", celeba_coordinates())
    image = load(path, transform=make_transform("celeba140", 140))
    assert [image[0].min(), image[0].max(), image[1].min(), image[1].max()] == [19, 158, 39, 178]
    image = load(path, transform=make_transform("celeba128", 128))
    assert [image[0].min(), image[0].max(), image[1].min(), image[1].max()] == [25, 152, 57, 184]


@pytest.mark.parametrize(("size", "box"), [((8, 5), (1, 0, 6, 5)), ((5, 8), (0, 1, 5, 6)), ((6, 6), (0, 0, 6, 6))])
def test_center_is_the_largest_centred_square(size, box):
    pixels = colour(size[1], size[0])
    left, top, right, bottom = box
    cropped = CROPS["center"](Image.fromarray(pixels))
    np.testing.assert_array_equal(np.asarray(cropped), pixels[top:bottom, left:right])


def test_resizing_is_bilinear_and_antialiased():
    step = np.zeros((64, 64), dtype=np.uint8)
    step[:, ::2] = 255  # stripes of one pixel: without antialiasing they would come out black or white
    small = np.asarray(make_transform("none", 8)(Image.fromarray(step)))
    assert small.shape == (8, 8)
    assert np.all(np.abs(small.astype(float) - 127.5) <= 5)
    two = Image.fromarray(np.array([[0, 100]], dtype=np.uint8))
    assert np.asarray(make_transform("none", 4)(two)).tolist() == [[0, 25, 75, 100]] * 4


@pytest.mark.parametrize("crop", ["celeba140", "celeba128"])
def test_an_image_too_small_for_the_crop_is_named(tmp_path, crop):
    path = save(tmp_path / "small.png", colour(100, 90))
    with pytest.raises(ValueError, match=r"small\.png: an image of 90 x 100 is too small for this crop"):
        load(path, transform=make_transform(crop, 64))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, suffix, kept):
    path = save(tmp_path / f"cut.{suffix}", colour(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"cannot use image .*cut\.{suffix}: .*; remove the file or replace it"):
        load(path)


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "note.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"cannot use image .*note\.png"):
        load(tmp_path / "note.png")


def test_a_png_with_a_flipped_bit_fails_its_checksum(tmp_path):
    path = save(tmp_path / "flipped.png", colour(64, 64))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.png"):
        load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load(tmp_path / "nowhere.png")


def test_wrong_options(tmp_path):
    with pytest.raises(ValueError, match=r"channels must be 1 \(grey\) or 3 \(RGB\), got 4"):
        load(save(tmp_path / "a.png", colour()), channels=4)
    with pytest.raises(ValueError, match=r"unknown crop 'centre'.*did you mean 'center'"):
        make_transform("centre", 8)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        make_transform("center", 0)
