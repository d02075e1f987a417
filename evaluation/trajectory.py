"""The way from noise to data as pictures: a strip of moments, and an animation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data import Quantizer, whole_file
from evaluation.pictures import density_picture, image_grid, save_picture
from samplers import Progress
from sde_lib import SDE
from sde_lib.arguments import require_at_least

GAP = 6
"""Pixels between pictures in the strip and in the animation."""


class Trajectory:
    """Keeps x_t and E[x0 | x_t] of the first samples at a fixed number of moments: pass it as ``on_step``.

    The moments are equal numbers of steps apart; where a method finds its steps as it goes, equal times apart, or fewer
    if its steps are longer than that.

    Args:
        sde: the process.
        moments: how many are kept, at least 1; the finished samples come on top.
        images: how many samples are kept.
    """

    def __init__(self, sde: SDE, moments: int = 9, images: int = 4) -> None:
        require_at_least(1, moments=moments, images=images)
        self.sde = sde
        self.moments = moments
        self.images = images
        self.frames: list[tuple[Tensor, Tensor]] = []
        self._batch: int | None = None  # the first batch that is seen is the one that is kept

    def __call__(self, first: int, progress: Progress) -> None:
        """Keep this moment if it is time."""
        done = 1 - progress.t / self.sde.T if progress.steps is None else (progress.step + 1) / progress.steps
        self._batch = first if self._batch is None else self._batch
        if first == self._batch and len(self.frames) < self.moments and done * self.moments >= len(self.frames) + 0.99:
            t = torch.tensor(progress.t, dtype=torch.float64)
            scale = torch.hypot(*self.sde.marginal(t))  # so that a variance-exploding x can be seen
            self.frames.append(((progress.x[: self.images] / scale).cpu(), progress.denoised[: self.images].cpu()))

    def save(self, x: Tensor, quantizer: Quantizer | None, path: Path) -> tuple[Path, Path]:
        """Write PATH.png, the strip, and PATH.gif, the animation; each shows x_t beside E[x0 | x_t].

        Args:
            x: the finished samples.
            quantizer: levels and range of the images; None for points.
            path: without suffix.
        """
        end = x[: len(self.frames[0][0]) if self.frames else self.images]
        frames = [*self.frames, (end, end)]
        strip, film = (path.with_name(path.name + suffix) for suffix in (".png", ".gif"))
        columns = [_stack([_column(part, quantizer) for part in frame], axis=0) for frame in frames]
        save_picture(_stack(columns, axis=1), strip)
        pictures = [Image.fromarray(_stack([_picture(part, quantizer) for part in f], axis=1)) for f in frames]
        times = [300] * (len(pictures) - 1) + [2000]  # milliseconds
        with whole_file(film) as draft:
            pictures[0].save(draft, save_all=True, append_images=pictures[1:], duration=times, loop=0)
        return strip, film


def _picture(x: Tensor, quantizer: Quantizer | None) -> np.ndarray:
    return density_picture(x.flatten(1)) if quantizer is None else image_grid(x, quantizer)


def _column(x: Tensor, quantizer: Quantizer | None) -> np.ndarray:
    """The samples one below the other; points all in one."""
    return _picture(x, None) if quantizer is None else _stack([image_grid(image[None], quantizer) for image in x], 0)


def _stack(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Pictures of one size in a row (axis 1) or a column (axis 0), with a gap between them."""
    height, width, _ = pictures[0].shape
    gap = np.full((GAP, width, 3) if axis == 0 else (height, GAP, 3), 255, dtype=np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis=axis)
