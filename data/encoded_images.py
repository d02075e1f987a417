"""Images that are stored as files of any format, and decoded when they are asked for."""

import io
import threading
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from data.dataset import Batch, Dataset
from data.images import cropped_size, load_image, make_transform
from data.labels import check_labels
from data.quantizer import Quantizer
from sde_lib.registry import lookup

CORRUPT = {"fail": False, "skip": True}
"""What an image that cannot be read does -> whether to go on without it."""


class EncodedImages(Dataset):
    """Images of 256 levels, shape (channels, image_size, image_size).

    Args:
        name: for messages, reports, and the files of ``data.converted``.
        length: number of images.
        labels: int64 classes (N,) or attributes (N, A), or None.
        num_classes: 0 unless the labels are classes.
        num_attributes: 0 unless the labels are attributes.
        label_names: of the classes or attributes.
        image_size: side of the square images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: a key of ``data.images.CROPS``.
        low: model value of level 0.
        high: model value of level 255.
        corrupt: what an image that cannot be read does: "fail", or "skip", and then the next one that can be read takes
            its place.

    Attributes:
        skipped: index -> reason, of the images that could not be read so far.

    Raises:
        ValueError: an option is not accepted.
    """

    def __init__(
        self,
        name: str,
        length: int,
        *,
        labels: Tensor | None = None,
        num_classes: int = 0,
        num_attributes: int = 0,
        label_names: Sequence[str] = (),
        image_size: int,
        channels: int,
        crop: str,
        low: float,
        high: float,
        corrupt: str = "fail",
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
        check_labels(labels, length, num_classes, num_attributes)
        self.name = name
        self.labels = labels
        self.shape = (channels, image_size, image_size)
        self.quantizer = Quantizer(low=low, high=high)
        self.num_classes = num_classes
        self.num_attributes = num_attributes
        self.label_names = tuple(label_names)
        self.crop = crop
        self.skips = lookup(CORRUPT, corrupt, "policy for corrupt images (corrupt)")
        self.skipped: dict[int, str] = {}
        self._length = length
        self._transform = make_transform(crop, image_size)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    @abstractmethod
    def content(self, index: int) -> bytes:
        """What is stored of an image; safe to call from several threads.

        Raises:
            OSError: it cannot be read.
        """

    @abstractmethod
    def place(self, index: int) -> str:
        """Where it is stored, for messages."""

    def fetch(self, indices: Sequence[int]) -> Batch:
        """See ``Dataset.fetch``; a damaged image is a ValueError that names it, unless such are skipped."""
        indices = self._checked(indices)
        x = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        shown = [self._read_into(x[row], index) for row, index in enumerate(indices)]
        return Batch(x, None if self.labels is None else self.labels[shown])

    def decode(self, index: int) -> Tensor:
        """One image as it is trained on, uint8 (C, H, W).

        Raises:
            ValueError: it cannot be used; the message names it.
            OSError: it cannot be read.
        """
        content = io.BytesIO(self.content(index))
        return load_image(content, channels=self.shape[0], transform=self._transform, name=self.place(index))

    def cropped_size(self, index: int) -> tuple[int, int]:
        """Width and height of what the crop leaves of an image, before it is resized.

        Raises:
            ValueError: the image is too small for the crop.
            OSError: it cannot be read.
        """
        return cropped_size(io.BytesIO(self.content(index)), self.crop)

    def _read_into(self, out: Tensor, index: int) -> int:
        """Decode an image, or where such are skipped the next one that can be; returns the index of that."""
        reason = ""
        for shown in (*range(index, len(self)), *range(index)):
            try:
                out.copy_(self.decode(shown))
                return shown
            except (ValueError, OSError) as error:
                if not self.skips:
                    raise
                reason = str(error)
                self._note(shown, reason)
        raise ValueError(f"none of the {len(self)} images of {self.name} can be read; the last: {reason}")

    def _note(self, index: int, reason: str) -> None:
        with self._lock:
            if index not in self.skipped:
                self.skipped[index] = reason
                tqdm.write(f"skipped, {len(self.skipped)} so far: {reason}")
