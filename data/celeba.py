"""CelebA: 202,599 aligned photographs of faces, 178 x 218 pixels (Liu et al., 2015, arXiv:1411.7766).

The data set is read as people have it: the layout of torchvision and of the official page, or that of Kaggle (an
inner ``img_align_celeba`` folder, tables as .csv), in ``root`` or in ``root/celeba``.
"""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.image_files import ImageFiles
from sde_lib.registry import lookup


class Part(NamedTuple):
    """Number of a split in the partition file, and its official range of file numbers."""

    code: int
    numbers: range


PARTS = {
    "train": Part(0, range(1, 162_771)),
    "valid": Part(1, range(162_771, 182_638)),
    "test": Part(2, range(182_638, 202_600)),
}


class CelebA(ImageFiles):
    """CelebA in RGB, unlabelled; the 40 binary attributes are at hand in ``attributes``.

    Args:
        split: "train", "valid" or "test", by the partition file, or by the official file numbers if it is missing.
        root: the folder that holds ``img_align_celeba``, or its parent if the folder is called ``celeba``.
        image_size: side of the square images, in pixels.
        crop: a key of ``data.images.CROPS``: "celeba140" as in score-SDE, "celeba128" as in DDIM, ...
        low: model value of level 0.
        high: model value of level 255.

    Raises:
        FileNotFoundError: the images, or some that the partition file lists, are missing.
        ValueError: an option is not accepted, or a table is malformed.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        root: str | Path,
        image_size: int = 64,
        crop: str = "celeba140",
        low: float = -1.0,
        high: float = 1.0,
    ) -> None:
        part = lookup(PARTS, split, "split of celeba")
        base = Path(root).expanduser()
        folder, on_disk = _find_images(base)
        partition = _find_table(base, "list_eval_partition")
        if partition is None:
            files = sorted(name for name in on_disk if _number(name) in part.numbers)
        else:
            files = sorted(name for name, code in read_partition(partition).items() if code == part.code)
            _check_complete(files, on_disk, folder, split)
        if not files:
            raise ValueError(f"the {split} split of CelebA under {folder} is empty: none of its images are there")
        super().__init__("celeba", folder, files, image_size=image_size, channels=3, crop=crop, low=low, high=high)
        self._attribute_file = _find_table(base, "list_attr_celeba")

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the 40 attributes; empty if their file is missing."""
        return self._attribute_table[0]

    @property
    def attributes(self) -> Tensor | None:
        """Attributes (N, 40), uint8 0 or 1, in the order of the split; None if their file is missing."""
        return self._attribute_table[1]

    @cached_property
    def _attribute_table(self) -> tuple[tuple[str, ...], Tensor | None]:
        if self._attribute_file is None:
            return (), None
        names, images, table = read_attributes(self._attribute_file)
        row_of = {image: row for row, image in enumerate(images)}
        absent = [file for file in self.files if file not in row_of]
        if absent:
            raise ValueError(
                f"{self._attribute_file} lacks {len(absent)} images of this split, the first is {absent[0]}"
            )
        return names, torch.from_numpy(table[[row_of[file] for file in self.files]])


def read_partition(path: Path) -> dict[str, int]:
    """File name -> 0 (train), 1 (valid) or 2 (test), from the .txt of the official page or the .csv of Kaggle."""
    rows = (line.replace(",", " ").split() for line in path.read_text().splitlines())
    try:
        return {name: int(code) for name, code in filter(None, rows) if name != "image_id"}
    except ValueError:
        raise ValueError(f"{path} is no CelebA partition table: expected lines like '000001.jpg 0'") from None


def read_attributes(path: Path) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    """Return attribute names, image names, and the table (images, attributes) as uint8 0 or 1."""
    lines = path.read_text().replace(",", " ").splitlines()
    if lines and lines[0].strip().isdigit():  # the .txt starts with the number of images
        del lines[0]
    if len(lines) < 2:
        raise ValueError(f"{path} is no CelebA attribute table: it has no rows")
    names = tuple(name for name in lines[0].split() if name != "image_id")
    try:
        table = np.loadtxt(lines[1:], dtype=np.int8, usecols=range(1, len(names) + 1), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is no CelebA attribute table: {error}") from None
    return names, [line.split(maxsplit=1)[0] for line in lines[1:] if line.strip()], (table == 1).astype(np.uint8)


def _places(root: Path) -> Iterator[Path]:
    """Folders that may hold the images and the tables; the last three are those of the official page."""
    for base in (root, root / "celeba"):
        yield from (base, base / "Img", base / "Anno", base / "Eval")


def _find_images(root: Path) -> tuple[Path, set[str]]:
    """The folder of the images, and the names of all of them."""
    for place in _places(root):
        for folder in (place / "img_align_celeba", place / "img_align_celeba" / "img_align_celeba"):
            names = os.listdir(folder) if folder.is_dir() else []
            images = {name for name in names if name.endswith(".jpg") and not name.startswith(".")}
            if images:
                return folder, images
    tables = [
        f"{stem}.txt or .csv (optional; {'found' if _find_table(root, stem) else 'not found'})"
        for stem in ("list_eval_partition", "list_attr_celeba")
    ]
    raise FileNotFoundError(
        f"CelebA is not in {root}{'' if root.is_dir() else ', which is no folder'}. Expected in it, or in its "
        f"subfolder celeba: img_align_celeba/000001.jpg ... 202599.jpg (not found); {tables[0]}; {tables[1]}. Get the "
        "'aligned & cropped images' from the official page, 'Large-scale CelebFaces Attributes (CelebA) Dataset', "
        "unpack img_align_celeba.zip there, and give that folder as root"
    )


def _find_table(root: Path, stem: str) -> Path | None:
    candidates = (place / f"{stem}{suffix}" for place in _places(root) for suffix in (".txt", ".csv"))
    return next((path for path in candidates if path.is_file()), None)


def _number(name: str) -> int:
    try:
        return int(Path(name).stem)
    except ValueError:
        raise ValueError(
            f"without list_eval_partition.txt CelebA is split by file number, but {name!r} is not like 000001.jpg"
        ) from None


def _check_complete(listed: list[str], on_disk: set[str], folder: Path, split: str) -> None:
    missing = sorted(set(listed) - on_disk)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(listed)} images of the {split} split are missing in {folder}, "
            f"the first is {missing[0]}; unpack img_align_celeba.zip again"
        )
