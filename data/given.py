"""An image that a user gives, and the mask that belongs to it, in the shape and levels of a data set."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data.images import Transform, load_image, make_transform
from data.quantizer import Quantizer

WHITE = 128
"""Mask values from here on are white."""


def given_image(path: Path, shape: Sequence[int], quantizer: Quantizer, crop: str) -> Tensor:
    """An image file as levels (C, H, W).

    One of the shape's own height and width is taken as it is; any other is cropped by name and resized.

    Args:
        path: of the file.
        shape: (C, H, W) of the data set, with C = 1 or 3.
        quantizer: of the data set.
        crop: a key of ``data.images.CROPS``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, or is too small for the crop.
    """
    _check_file(path, "image")
    levels = load_image(path, channels=shape[0], transform=_fitting(shape, crop), name=str(path))
    if quantizer.levels == 256:
        return levels
    return (levels.double() * ((quantizer.levels - 1) / 255)).round().to(quantizer.dtype)


def given_mask(mask: str, shape: Sequence[int], crop: str, image: Path | None) -> Tensor:
    """What is to be painted anew, bool (H, W): the white pixels of a picture, or a region by name.

    Args:
        mask: a key of ``REGIONS``, or the path of a picture: of the data set's height and width, or as large as the
            image, and then cropped alike.
        shape: (C, H, W) of the data set.
        crop: of the image.
        image: its file, if it is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, or of another size than the image's, or all of it is white or none.
    """
    if mask in REGIONS:
        sides = zip(REGIONS[mask], shape[1:], strict=True)
        rows, columns = (slice(*(round(share * side) for share in part)) for part, side in sides)
        region = torch.zeros(*shape[1:], dtype=torch.bool)
        region[rows, columns] = True
        return region
    path = Path(mask).expanduser()
    _check_file(path, f"mask (the regions {', '.join(REGIONS)} are known by name)")
    height, width = shape[1:]
    allowed = [(width, height)] if image is None else [(width, height), _size(image)]
    if _size(path) not in allowed:
        sizes = " or ".join(f"{w} x {h}" for w, h in dict.fromkeys(allowed))
        raise ValueError(f"the mask {path} has {_size(path)[0]} x {_size(path)[1]} pixels; it must have {sizes}")
    white = load_image(path, channels=1, transform=_fitting(shape, crop), name=str(path))[0] >= WHITE
    if white.all() or not white.any():
        raise ValueError(
            f"the mask {path} is {'all' if white.all() else 'nowhere'} white; paint white what is to be made anew, and "
            "the rest black"
        )
    return white


REGIONS = {
    "left": ((0, 1), (0, 0.5)),
    "right": ((0, 1), (0.5, 1)),
    "top": ((0, 0.5), (0, 1)),
    "bottom": ((0.5, 1), (0, 1)),
    "center": ((0.25, 0.75), (0.25, 0.75)),
}
"""Name -> from where to where, as shares of the height and of the width."""


def _fitting(shape: Sequence[int], crop: str) -> Transform:
    """Crop and resize, unless the size is right already."""
    height, width = shape[1:]
    cut = make_transform(crop, height)

    def transform(image: Image.Image) -> Image.Image:
        if image.size == (width, height):
            return image
        if height != width:
            raise ValueError(f"it has {image.width} x {image.height} pixels, and the model's images {width} x {height}")
        try:
            return cut(image)
        except ValueError as error:
            raise ValueError(
                f"{error}; an image of {width} x {height} is taken as it is, and --config.data.crop=center takes any"
            ) from error

    return transform


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give the path of the {what}")


def _size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as stored or, where EXIF says so, turned."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            return (image.height, image.width) if turned else image.size
    except (OSError, SyntaxError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"cannot use image {path}: {reason}; replace it by an intact one") from error


_ORIENTATION = 0x0112
