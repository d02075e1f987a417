"""A list of image files as a data set; the pixels are read when they are asked for."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.dataset import Batch, Dataset
from data.images import load_image, make_transform
from data.quantizer import Quantizer


class ImageFiles(Dataset):
    """Images of 256 levels, shape (channels, image_size, image_size), decoded in ``fetch``.

    Args:
        name: for messages and reports.
        root: the folder that ``files`` are relative to.
        files: relative paths; their order is the order of the samples.
        labels: int64 classes (N,), or None.
        num_classes: 0 if unlabelled.
        image_size: side of the square images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: a key of ``data.images.CROPS``.
        low: model value of level 0.
        high: model value of level 255.

    Raises:
        ValueError: ``channels``, ``crop``, ``image_size``, or ``low`` and ``high`` are not accepted.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        files: Sequence[str],
        *,
        labels: Tensor | None = None,
        num_classes: int = 0,
        image_size: int,
        channels: int,
        crop: str,
        low: float,
        high: float,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
        self.name = name
        self.root = root
        self.files = list(files)
        self.shape = (channels, image_size, image_size)
        self.quantizer = Quantizer(low=low, high=high)
        self.num_classes = num_classes
        self._labels = labels
        self._transform = make_transform(crop, image_size)

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """See ``Dataset.fetch``; a damaged file is a ValueError that names it."""
        indices = self._checked(indices)
        x = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for row, index in enumerate(indices):
            x[row] = load_image(self.root / self.files[index], channels=self.shape[0], transform=self._transform)
        return Batch(x, None if self._labels is None else self._labels[indices])
