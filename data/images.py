"""From an image file to uint8 levels (C, H, W): orientation, transparency, grey or colour, crop and size."""

import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sde_lib.registry import lookup

Transform = Callable[[Image.Image], Image.Image]

_MODES = {1: "L", 3: "RGB"}
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def load_image(file: Path | BinaryIO, *, channels: int, transform: Transform, name: str | None = None) -> Tensor:
    """Read one image as uint8 (channels, H, W).

    The EXIF orientation is applied, transparent pixels are laid on white, 16-bit grey is scaled to 8 bits, and colour
    becomes grey (ITU-R 601 luma) or grey becomes colour as ``channels`` asks.

    Args:
        file: its path or content, in any format that Pillow reads.
        channels: 1 (grey) or 3 (RGB).
        transform: crop and resize, see ``make_transform``.
        name: of the file, for messages; None for its path.

    Raises:
        ValueError: ``channels`` is neither; or the file is damaged, truncated, no image, too small for the crop, or
            has pixels without a fixed range (32 bit). The message names the file.
        FileNotFoundError: there is no such file.
    """
    mode = _MODES.get(channels)
    if mode is None:
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    try:
        with Image.open(file) as source:
            upright = ImageOps.exif_transpose(source)
            image = transform(_opaque_eight_bit(upright, source.format).convert(mode))
    except FileNotFoundError:
        raise
    except _DECODE_ERRORS as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(
            f"cannot use image {name or file}: {reason}; remove the file or replace it by an intact one"
        ) from error
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _opaque_eight_bit(image: Image.Image, file_format: str | None) -> Image.Image:
    """Reduce 16-bit grey to 8 bits, refuse pixels without a fixed range, lay transparent pixels on white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):  # older Pillow: PNG as "I"
        return Image.fromarray(np.rint(np.asarray(image, dtype=np.float64) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its 32-bit pixels (mode {image.mode!r}) have no fixed range, convert it to 8 bits")
    if "transparency" in image.info or {"A", "a"} & set(image.getbands()):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def make_transform(crop: str, size: int) -> Transform:
    """Crop by name, then resize to size x size (Pillow's bilinear filter, which is antialiased).

    Raises:
        ValueError: unknown crop, or ``size`` less than 1.
    """
    cut = lookup(CROPS, crop, "crop")
    if size < 1:
        raise ValueError(f"image_size must be at least 1, got {size}")
    return lambda image: cut(image).resize((size, size), Image.Resampling.BILINEAR)


def no_crop(image: Image.Image) -> Image.Image:
    """The whole image; an oblong one is squeezed by the resizing that follows."""
    return image


def center_crop(image: Image.Image) -> Image.Image:
    """The largest centred square."""
    return _centered(image, min(image.size))


def celeba140_crop(image: Image.Image) -> Image.Image:
    """The central 140 x 140, as in score-SDE (Song et al., 2021, arXiv:2011.13456)."""
    return _centered(image, 140)


def celeba128_crop(image: Image.Image) -> Image.Image:
    """Columns 25 .. 153 and rows 57 .. 185, as in DDIM (Song et al., 2021, arXiv:2010.02502)."""
    return _box(image, 25, 57, 128)


CROPS: dict[str, Transform] = {
    "center": center_crop,
    "none": no_crop,
    "celeba140": celeba140_crop,
    "celeba128": celeba128_crop,
}


def cropped_size(file: BinaryIO, crop: str) -> tuple[int, int]:
    """Width and height of what a crop leaves of an image; of the image only the header is read.

    Raises:
        ValueError: the image is too small for the crop.
        OSError: it is no image.
    """
    with Image.open(file) as source:
        width, height = source.size
        if source.getexif().get(ExifTags.Base.Orientation, 1) > 4:  # the camera lay on its side
            width, height = height, width
    return _size_after(crop, width, height)


@lru_cache
def _size_after(crop: str, width: int, height: int) -> tuple[int, int]:
    return CROPS[crop](Image.new("1", (width, height))).size


def _centered(image: Image.Image, side: int) -> Image.Image:
    return _box(image, (image.width - side) // 2, (image.height - side) // 2, side)


def _box(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    """A square of the image; Pillow alone would pad with black where the image ends."""
    if left < 0 or top < 0 or left + side > image.width or top + side > image.height:
        raise ValueError(f"an image of {image.width} x {image.height} is too small for this crop ({side} x {side})")
    return image.crop((left, top, left + side, top + side))
