"""An image and a mask that a user gives."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import REGIONS, Quantizer, given_image, given_mask

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
COLOUR, FULL = (3, 8, 8), Quantizer()


@pytest.fixture
def saved(tmp_path):
    def save(pixels, name="x.png", **options):
        Image.fromarray(pixels).save(tmp_path / name, **options)
        return tmp_path / name

    return save


def test_an_image_of_the_right_size_is_taken_as_it_is(saved):
    pixels = PIXELS[:8, :8]
    path = saved(pixels)
    for crop in ("center", "none", "celeba140"):
        assert torch.equal(given_image(path, COLOUR, FULL, crop), torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(
        given_image(saved(PIXELS), (3, 12, 20), FULL, "center").permute(1, 2, 0), torch.from_numpy(PIXELS)
    )


def test_another_is_cropped_and_resized(saved):
    cut = Image.fromarray(PIXELS[:, 4:16]).resize((8, 8), Image.Resampling.BILINEAR)
    assert torch.equal(
        given_image(saved(PIXELS), COLOUR, FULL, "center").permute(1, 2, 0), torch.from_numpy(np.array(cut))
    )


@pytest.mark.parametrize(("value", "level"), [(0, 0), (255, 16), (128, 8), (127, 8), (15, 1)])
def test_it_gets_the_levels_of_the_data(saved, value, level):
    path = saved(np.full((8, 8), value, dtype=np.uint8))
    v = given_image(path, (1, 8, 8), Quantizer(17), "center")
    assert v.dtype == torch.uint8
    assert (v == level).all()
    assert (given_image(path, COLOUR, Quantizer(65536), "center") == value * 257).all()


def test_regions():
    found = {name: given_mask(name, (3, 4, 8), "center", None) for name in REGIONS}
    rows, columns = torch.arange(4).unsqueeze(1).expand(4, 8), torch.arange(8).expand(4, 8)
    assert torch.equal(found["left"], columns < 4)
    assert torch.equal(found["right"], columns >= 4)
    assert torch.equal(found["top"], rows < 2)
    assert torch.equal(found["bottom"], rows >= 2)
    assert torch.equal(found["center"], (rows >= 1) & (rows < 3) & (columns >= 2) & (columns < 6))


def test_a_mask_is_cropped_as_the_image_is(saved):
    image = saved(PIXELS)
    white = np.zeros((12, 20), dtype=np.uint8)
    white[:, 10:] = 255
    mask = given_mask(str(saved(white, "mask.png")), (3, 12, 12), "center", image)
    assert torch.equal(mask, (torch.arange(12) >= 6).expand(12, 12))
    small = np.zeros((8, 8, 3), dtype=np.uint8)
    small[2, 3] = 255
    mask = given_mask(str(saved(small, "small.png")), COLOUR, "center", image)
    assert mask.nonzero().tolist() == [[2, 3]]


def test_an_image_on_its_side_and_its_mask(saved):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = saved(PIXELS, "turned.jpg", exif=exif)
    white = np.zeros((20, 12), dtype=np.uint8)
    white[:10] = 255
    mask = given_mask(str(saved(white, "mask.png")), (3, 12, 12), "center", image)
    assert torch.equal(mask, (torch.arange(12) < 6).unsqueeze(1).expand(12, 12))


def test_what_cannot_be_used(saved, tmp_path):
    image = saved(PIXELS)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nix\.png; give the path of the image"):
        given_image(tmp_path / "nix.png", COLOUR, FULL, "center")
    with pytest.raises(
        FileNotFoundError, match=r"path of the mask \(the regions left, right, top, bottom, center are kn"
    ):
        given_mask("lefft", COLOUR, "center", None)
    with pytest.raises(
        ValueError, match=r"too small for this crop .140 x 140.; an image of 8 x 8 is taken as it is, and"
    ):
        given_image(image, COLOUR, FULL, "celeba140")
    with pytest.raises(ValueError, match="it has 20 x 12 pixels, and the model's images 8 x 4"):
        given_image(image, (3, 4, 8), FULL, "center")
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(ValueError, match=r"cannot use image .*text\.png: not an image"):
        given_image(text, COLOUR, FULL, "center")
    with pytest.raises(ValueError, match=r"cannot use image .*text\.png: not an image; replace it by an intact one"):
        given_mask(str(text), COLOUR, "center", image)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(image.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cannot use image .*damaged\.png: .*truncated"):
        given_mask(str(damaged), COLOUR, "center", image)
    odd = str(saved(np.zeros((5, 5), dtype=np.uint8), "odd.png"))
    with pytest.raises(ValueError, match=r"odd\.png has 5 x 5 pixels; it must have 8 x 8 or 20 x 12"):
        given_mask(odd, COLOUR, "center", image)
    for value, word in ((0, "nowhere"), (255, "all")):
        plain = str(saved(np.full((8, 8), value, dtype=np.uint8), "plain.png"))
        with pytest.raises(ValueError, match=f"plain.png is {word} white; paint white what is to be made anew"):
            given_mask(plain, COLOUR, "center", image)
