"""Arrays in a file: images of uint8 as ``.npy`` or ``.npz``, or continuous vectors of floating-point numbers."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.dataset import Batch, Dataset
from data.holdout import choose_split, hash_names
from data.labels import check_labels
from data.quantizer import Quantizer
from sde_lib.registry import lookup

SAMPLES = ("{split}_images", "x_{split}", "images", "samples", "x", "arr_0")
LABELS = ("{split}_labels", "y_{split}", "labels", "y", "arr_1")
"""Names in an .npz, in the order in which they are looked for; those with a split need no hold-out."""


class Arrays(Dataset):
    """The rows of an array.

    Images are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3; other rows are vectors (N, D), kept as
    float32 without levels. In an .npz, labels are whole numbers (N,), or attributes (N, A) of 0 and 1. An .npy is
    mapped into memory, and may be larger than that.

    Args:
        split: "train" or "test".
        root: the file.
        holdout: share of the rows that are held out, by a hash of their number; arrays that the .npz holds by split
            (``train_images`` or ``x_train``, and the like) are taken as they are.
        low: model value of level 0 (images).
        high: model value of level 255 (images).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, its arrays do not fit, or an option is not accepted.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        root: str | Path,
        holdout: float = 0.1,
        low: float = -1.0,
        high: float = 1.0,
    ) -> None:
        lookup({"train": 0, "test": 1}, split, "split of arrays")
        path = Path(root).expanduser()
        samples, labels, divided = _open(path, split)
        self.name = f"arrays/{path.stem}"
        self._axes = _axes(samples, path)
        hashes = hash_names(map(str, range(len(samples))))
        self._samples = samples
        self._rows = np.arange(len(samples)) if divided else choose_split(hashes, split, holdout, f"{path}")
        self.shape = tuple(self._arrange(_tensor(samples[:1])).shape[1:])
        self.quantizer = None if self._axes is None else Quantizer(low=low, high=high)
        self._labels, self.num_classes, self.num_attributes = _check(labels, len(samples), path)

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """See ``Dataset.fetch``."""
        rows = self._rows[np.array(self._checked(indices), dtype=np.int64)]
        x = self._arrange(_tensor(self._samples[rows]))
        return Batch(x, None if self._labels is None else self._labels[torch.from_numpy(rows)])

    def _arrange(self, x: Tensor) -> Tensor:
        """Rows as they are stored -> (B, C, H, W) levels or (B, D) values."""
        if self._axes is None:
            return x.float()
        return (x.unsqueeze(1) if x.ndim == 3 else x.permute(self._axes)).contiguous()


def _tensor(rows: np.ndarray) -> Tensor:
    """A copy, in this machine's order of bytes."""
    return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("=")))


def _open(path: Path, split: str) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Samples, labels, and whether they are those of the split."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give an .npy or .npz as root")
    with path.open("rb") as file:
        packed = file.read(2) == b"PK"
        file.seek(0)
        try:
            if not packed:
                return np.load(path, mmap_mode="r", allow_pickle=False), None, False
            with np.load(file, allow_pickle=False) as content:
                return _choose(content, split, path)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, _NoSamplesError):
                raise
            raise ValueError(
                f"{path} is no complete .npy or .npz of plain numbers ({error}); write it with numpy.save or savez"
            ) from error


class _NoSamplesError(ValueError):
    """An .npz without the names that are looked for."""


def _choose(content: Mapping[str, np.ndarray], split: str, path: Path) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Samples and labels by their names, and whether these are those of the split."""
    found = next((key for key in SAMPLES if key.format(split=split) in content), None)
    if found is None:
        listing = ", ".join(key.format(split=split) for key in SAMPLES)
        raise _NoSamplesError(f"{path} holds {', '.join(sorted(content)) or 'nothing'}; name the samples {listing}")
    divided = "{split}" in found
    keys = (key.format(split=split) for key in LABELS if ("{split}" in key) == divided)
    label = next((key for key in keys if key in content), None)
    return content[found.format(split=split)], None if label is None else content[label], divided


def _axes(samples: np.ndarray, path: Path) -> tuple[int, ...] | None:
    """How axes become (N, C, H, W); None for vectors."""
    if samples.ndim and samples.size == 0:
        raise ValueError(f"{path} holds no samples")
    if samples.dtype == np.uint8 and samples.ndim == 3:
        return (0, 1, 2)
    if samples.dtype == np.uint8 and samples.ndim == 4:
        if samples.shape[3] in (1, 3):
            return (0, 3, 1, 2)
        if samples.shape[1] in (1, 3):
            return (0, 1, 2, 3)
    if samples.dtype.kind == "f" and samples.ndim == 2:
        if not all(_fits(samples[start : start + 65_536]) for start in range(0, len(samples), 65_536)):
            raise ValueError(f"{path} holds values that are not finite as float32")
        return None
    raise ValueError(
        f"{path} holds {samples.dtype} of shape {samples.shape}; give images as uint8 (N, H, W), (N, H, W, C) or "
        "(N, C, H, W) with 1 or 3 channels, or vectors as floating-point (N, D)"
    )


def _fits(rows: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(rows.astype(np.float32)).all())


def _check(labels: np.ndarray | None, length: int, path: Path) -> tuple[Tensor | None, int, int]:
    """Labels as int64, and the number of classes or attributes."""
    if labels is None:
        return None, 0, 0
    if labels.dtype.kind not in "iub" or labels.ndim not in (1, 2):
        raise ValueError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}; give whole numbers (N,) or (N, A)"
        )
    y = torch.from_numpy(labels.astype(np.int64))
    y = y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y  # a column of classes
    classes, attributes = (1 + max(int(y.max()), 0), 0) if y.ndim == 1 and len(y) else (0, y.shape[-1])
    try:
        check_labels(y, length, classes, attributes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return y, classes, attributes
