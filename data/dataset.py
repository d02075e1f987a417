"""What a data set is: samples fetched by index, in the form in which they are stored.

Raw samples are uint8 levels (images) or float32 vectors (continuous data). Turning them into model inputs is the
business of ``loader`` alone, so a data set is never random and may be read by several threads.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data.labels import check_labels
from data.quantizer import Quantizer


class Batch(NamedTuple):
    """Samples ``x`` (B, *) and their labels ``y``: classes (B,) or attributes (B, A), int64, or None without labels."""

    x: Tensor
    y: Tensor | None = None


class Dataset(ABC):
    """A finite set of samples of one shape.

    Attributes:
        name: for messages and reports.
        shape: of one sample: (C, H, W) or (D,).
        quantizer: levels and range of the pixels; None for continuous data, which has no levels.
        num_classes: number of classes, where the labels are classes; else 0.
        num_attributes: number of attributes, where the labels are vectors of these; else 0. If both are 0 the data are
            unlabelled, and every ``Batch.y`` is None.
        label_names: of the classes or attributes; empty where they have none.
        shards: lengths of the stretches in which the samples are stored, for data that are best read one after the
            other; empty for data that are read anywhere.
    """

    name: str
    shape: tuple[int, ...]
    quantizer: Quantizer | None
    num_classes: int = 0
    num_attributes: int = 0
    label_names: tuple[str, ...] = ()
    shards: tuple[int, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples; 0 only where there are no data at hand (``NoData``)."""

    @abstractmethod
    def fetch(self, indices: Sequence[int]) -> Batch:
        """Return raw samples in the order asked for; safe to call from several threads.

        Args:
            indices: B indices in 0 .. len - 1; repeats are allowed.

        Returns:
            ``x`` uint8 levels (B, C, H, W), or float32 (B, D) where ``quantizer`` is None; ``y`` as in ``Batch``.

        Raises:
            IndexError: an index is out of range.
        """

    def _checked(self, indices: Sequence[int]) -> list[int]:
        """Return the indices as ints, or raise the IndexError that ``fetch`` promises."""
        checked = [operator.index(index) for index in indices]
        for index in checked:
            if not 0 <= index < len(self):
                raise IndexError(
                    f"index {index} is out of range for data set {self.name!r}: "
                    f"it has {len(self)} samples, 0..{len(self) - 1}"
                )
        return checked


class TensorDataset(Dataset):
    """Samples that fit in memory.

    Args:
        name: for messages and reports.
        x: levels (N, C, H, W) of the quantizer's dtype, or float32 (N, D) without.
        y: int64 classes (N,) in 0 .. num_classes - 1, or attributes (N, A) of 0 and 1, or None.
        quantizer: levels and range; None for continuous data.
        num_classes: 0 unless the labels are classes.
        num_attributes: A, or 0 unless the labels are attributes.
        label_names: of the classes or attributes.

    Raises:
        TypeError: ``x`` or ``y`` has the wrong dtype.
        ValueError: there are no samples, or levels or labels do not fit ``quantizer`` and ``num_classes``.
    """

    def __init__(
        self,
        name: str,
        x: Tensor,
        y: Tensor | None = None,
        *,
        quantizer: Quantizer | None = None,
        num_classes: int = 0,
        num_attributes: int = 0,
        label_names: Sequence[str] = (),
    ) -> None:
        _check_samples(x, quantizer)
        check_labels(y, len(x), num_classes, num_attributes)
        self.name = name
        self.shape = tuple(x.shape[1:])
        self.quantizer = quantizer
        self.num_classes = num_classes
        self.num_attributes = num_attributes
        self.label_names = tuple(label_names)
        self._x, self._y = x, y

    def __len__(self) -> int:
        return len(self._x)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """See ``Dataset.fetch``."""
        index = torch.tensor(self._checked(indices), dtype=torch.int64)
        return Batch(self._x[index], None if self._y is None else self._y[index])


def _check_samples(x: Tensor, quantizer: Quantizer | None) -> None:
    accepted = torch.float32 if quantizer is None else quantizer.dtype
    if x.dtype != accepted:
        kind = "continuous data (no quantizer)" if quantizer is None else "data with a quantizer"
        raise TypeError(f"{kind} must be {accepted}, got {x.dtype}")
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"samples must have shape (N, *) with N >= 1, got {tuple(x.shape)}")
    if quantizer is not None and not 0 <= (low := int(x.min())) <= (high := int(x.max())) < quantizer.levels:
        raise ValueError(f"levels from {low} to {high} do not fit a quantizer of {quantizer.levels} levels")
