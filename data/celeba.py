"""CelebA: 202,599 aligned photographs of faces, 178 x 218 pixels (Liu et al., 2015, arXiv:1411.7766).

The data set is read as people have it: a folder, or the zip as it was downloaded, in the layout of torchvision, of the
official page, or of Kaggle (an inner ``img_align_celeba`` folder, tables as .csv). FIDs of different crops cannot be
compared: "celeba140" is score-SDE's, "celeba128" DDIM's (``data.images.CROPS``).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.celeba_tables import read_attributes, read_partition
from data.files import Archive, Files, Folder
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
IMAGES, PARTITION, ATTRIBUTES = "img_align_celeba", "list_eval_partition", "list_attr_celeba"
ALL = "all"


class CelebA(ImageFiles):
    """CelebA in RGB; its labels are those of the 40 binary attributes that are asked for.

    Args:
        split: "train", "valid" or "test", by the partition file, or by the official file numbers if it is missing.
        root: the folder that holds ``img_align_celeba`` or ``img_align_celeba.zip``, or its parent if that folder is
            called ``celeba``; or a zip that holds the images, with the tables in it or beside it.
        image_size: side of the square images, in pixels.
        crop: a key of ``data.images.CROPS``: "celeba140" as in score-SDE, "celeba128" as in DDIM, ...
        attributes: which of them are labels: names divided by commas, "all", or "" for unlabelled data.
        low: model value of level 0.
        high: model value of level 255.
        corrupt: "fail" or "skip"; see ``EncodedImages``.

    Raises:
        FileNotFoundError: the images, or some that the partition file lists, or the attributes are missing.
        ValueError: an option is not accepted, or a table is malformed.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        root: str | Path,
        image_size: int = 64,
        crop: str = "celeba140",
        attributes: str = "",
        low: float = -1.0,
        high: float = 1.0,
        corrupt: str = "fail",
    ) -> None:
        part = lookup(PARTS, split, "split of celeba")
        base = Path(root).expanduser()
        files, on_disk = _find_images(base)
        names = _choose(part, _find_table(base, PARTITION), on_disk, files, split)
        chosen, labels = _labels(base, [Path(name).name for name in names], attributes)
        super().__init__(
            "celeba",
            files,
            names,
            labels=labels,
            num_attributes=len(chosen),
            label_names=chosen,
            image_size=image_size,
            channels=3,
            crop=crop,
            low=low,
            high=high,
            corrupt=corrupt,
        )


class Table(NamedTuple):
    """The text of a table, and where it stands."""

    text: str
    place: str


def _places(root: Path) -> Iterator[Path]:
    """Folders that may hold the images and the tables; the last three of each are those of the official page."""
    for base in (root, root / "celeba"):
        yield from (base, base / "Img", base / "Anno", base / "Eval")


def _find_images(root: Path) -> tuple[Files, dict[str, str]]:
    """The images, and image -> its name there."""
    for files in _candidates(root):
        images = {Path(name).name: name for name in files.names if name.endswith(".jpg")}
        if images:
            return files, images
    tables = [
        f"{stem}.txt or .csv (optional; {'not found' if _find_table(root, stem) is None else 'found'})"
        for stem in (PARTITION, ATTRIBUTES)
    ]
    raise FileNotFoundError(
        f"CelebA is not in {root}{'' if root.exists() else ', which does not exist'}. Expected in it, or in its "
        f"subfolder celeba: {IMAGES}/000001.jpg ... 202599.jpg or {IMAGES}.zip (not found); {tables[0]}; {tables[1]}. "
        "Get the 'aligned & cropped images' from the official page, 'Large-scale CelebFaces Attributes (CelebA) "
        "Dataset', and give the folder that holds them, or the zip, as root"
    )


def _candidates(root: Path) -> Iterator[Files]:
    if root.is_file():
        yield Archive(root)
    for place in _places(root):
        for folder in (place / IMAGES / IMAGES, place / IMAGES):
            if folder.is_dir():
                yield Folder(folder)
        if (place / f"{IMAGES}.zip").is_file():
            yield Archive(place / f"{IMAGES}.zip")


def _find_table(root: Path, stem: str) -> Table | None:
    """A table, beside the images or in the same zip."""
    if root.is_file():
        archive = Archive(root)
        for name in archive.names:
            if Path(name).name in (f"{stem}.txt", f"{stem}.csv"):
                return Table(_text(archive.read(name)), archive.place(name))
        root = root.parent
    for place in _places(root):
        for path in (place / f"{stem}.txt", place / f"{stem}.csv"):
            if path.is_file():
                return Table(_text(path.read_bytes()), f"{path}")
    return None


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig", "replace")  # what is no text then is no table either


def _choose(part: Part, partition: Table | None, on_disk: dict[str, str], files: Files, split: str) -> list[str]:
    """The images of a split, as they are named there."""
    if partition is None:
        images = sorted(image for image in on_disk if _number(image) in part.numbers)
    else:
        listed = read_partition(partition.text, partition.place)
        images = sorted(image for image, code in listed.items() if code == part.code)
        missing = [image for image in images if image not in on_disk]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(images)} images of the {split} split are missing in {files.path}, "
                f"the first is {missing[0]}; get {IMAGES}.zip again, or unpack it again"
            )
    if not images:
        raise ValueError(f"the {split} split of CelebA in {files.path} is empty: none of its images are there")
    return [on_disk[image] for image in images]


def _number(image: str) -> int:
    if not re.fullmatch(r"\d+\.jpg", image):
        raise ValueError(
            f"without {PARTITION}.txt CelebA is split by file number, but {image!r} is not like 000001.jpg"
        )
    return int(image.removesuffix(".jpg"))


def _labels(root: Path, images: list[str], attributes: str) -> tuple[tuple[str, ...], Tensor | None]:
    """The attributes that were asked for, and their values (N, A); nothing where none were."""
    if not attributes.strip():
        return (), None
    table = _find_table(root, ATTRIBUTES)
    if table is None:
        raise FileNotFoundError(
            f"the attributes {attributes!r} were asked for, but {ATTRIBUTES}.txt or .csv is not in {root}; put it "
            "beside the images, or leave data.attributes empty"
        )
    names, listed, values = read_attributes(table.text, table.place)
    column_of = {name: column for column, name in enumerate(names)}
    wanted = names if attributes.strip() == ALL else tuple(word.strip() for word in attributes.split(","))
    columns = [lookup(column_of, name, "attribute of celeba (attributes)") for name in wanted]
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"attributes {attributes!r}: one is named twice")
    row_of = {image: row for row, image in enumerate(listed)}
    absent = [image for image in images if image not in row_of]
    if absent:
        raise ValueError(f"{table.place} lacks {len(absent)} images of this split, the first is {absent[0]}")
    return wanted, torch.from_numpy(values[[row_of[image] for image in images]][:, columns])
