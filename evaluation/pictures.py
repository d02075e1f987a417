"""Pictures of samples: a grid of images, or the density of points in the plane."""

import math
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from data import Quantizer, whole_file

SMALLEST_SIDE = 64
"""Images are enlarged by a whole factor until a side has about this many pixels, so that small ones can be seen."""


def image_grid(x: Tensor, quantizer: Quantizer, columns: int | None = None) -> np.ndarray:
    """Arrange images in a grid with a thin frame.

    Args:
        x: model outputs (N, C, H, W) with C = 1 or 3 (of other numbers the first is shown).
        quantizer: levels and range of the data.
        columns: images in a row; None for a square-ish grid.

    Returns:
        uint8 (H', W', 3).
    """
    pixels = quantizer.to_uint8(x).permute(0, 2, 3, 1).numpy()
    pixels = pixels if pixels.shape[3] == 3 else np.repeat(pixels[..., :1], 3, axis=3)
    n, height, width, _ = pixels.shape
    scale = max(1, SMALLEST_SIDE // max(height, width))
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    rows = math.ceil(n / columns)
    frame = 2
    cell = (height * scale + frame, width * scale + frame)
    canvas = np.full((rows * cell[0] + frame, columns * cell[1] + frame, 3), 128, dtype=np.uint8)
    for i, image in enumerate(pixels):
        top, left = frame + (i // columns) * cell[0], frame + (i % columns) * cell[1]
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def density_picture(points: Tensor, *, extent: float = 3.0, size: int = 256) -> np.ndarray:
    """Histogram of points in the plane, dark where there are many.

    Args:
        points: (N, D) with D >= 2; the first two coordinates are shown.
        extent: the picture covers [-extent, extent] in both.
        size: pixels of a side.

    Returns:
        uint8 (size, size, 3).
    """
    bins = np.linspace(-extent, extent, max(2, min(size, int(math.sqrt(len(points))))) + 1)
    counts, _, _ = np.histogram2d(points[:, 1].numpy(), points[:, 0].numpy(), bins=(bins, bins))
    shade = 255 * (1 - np.sqrt(counts[::-1] / max(counts.max(), 1)))
    picture = Image.fromarray(shade.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(picture.convert("RGB"))


def picture(x: Tensor, quantizer: Quantizer | None) -> np.ndarray:
    """The picture that fits the samples: images have a quantizer, continuous data have not."""
    return density_picture(x.flatten(1)) if quantizer is None else image_grid(x, quantizer)


def save_picture(pixels: np.ndarray, path: Path) -> Path:
    """Write a PNG and return its path."""
    with whole_file(path) as draft:
        Image.fromarray(pixels).save(draft)
    return path
