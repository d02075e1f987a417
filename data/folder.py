"""Any folder or zip of images, nested or flat, with a fixed held-out part (``data.holdout``)."""

from pathlib import Path

import torch

from data.dataset_json import FILE, Table, read_labels
from data.files import Files, open_files
from data.holdout import choose_split, hash_names
from data.image_files import ImageFiles

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder(ImageFiles):
    """The images under ``root`` in the sorted order of their paths.

    A file ``dataset.json`` at the top gives their labels (``data.dataset_json``). Without it: if every image lies in a
    subfolder, and there are at least two of these, the first-level subfolders are the classes (``label_names``,
    sorted); otherwise the images are unlabelled. Names that start with a dot are passed over.

    Args:
        split: "train", or "test" for the held-out images.
        root: the folder, or a .zip.
        image_size: side of the square images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: a key of ``data.images.CROPS``.
        holdout: expected fraction of held-out images, in [0, 1). From two images on, and unless it is 0, both splits
            hold at least one.
        low: model value of level 0.
        high: model value of level 255.
        corrupt: "fail" or "skip"; see ``EncodedImages``.

    Raises:
        FileNotFoundError: there is nothing at ``root``, or no images.
        ValueError: an option is not accepted, ``dataset.json`` or the zip is damaged, or the split is empty.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        root: str | Path,
        image_size: int,
        channels: int = 3,
        crop: str = "center",
        holdout: float = 0.1,
        low: float = -1.0,
        high: float = 1.0,
        corrupt: str = "fail",
    ) -> None:
        files = open_files(Path(root).expanduser())
        found = find_images(files)
        names = [found[row] for row in choose_split(hash_names(found), split, holdout, f"{files.path}")]
        class_names = () if FILE in files.names else _class_names(found)
        table = _labels(files, names, class_names)
        super().__init__(
            f"folder/{files.path.stem}",
            files,
            names,
            labels=table.labels,
            num_classes=table.num_classes,
            num_attributes=table.num_attributes,
            label_names=class_names,
            image_size=image_size,
            channels=channels,
            crop=crop,
            low=low,
            high=high,
            corrupt=corrupt,
        )


def is_image(name: str) -> bool:
    """Whether a file is an image, by the end of its name."""
    return name.lower().endswith(EXTENSIONS)


def find_images(files: Files) -> list[str]:
    """Sorted names of all images.

    Raises:
        FileNotFoundError: there are none.
    """
    found = list(filter(is_image, files.names))
    if not found:
        raise FileNotFoundError(
            f"no images in {files.path}: looked for *{', *'.join(EXTENSIONS)} in it and its subfolders"
        )
    return found


def _class_names(files: list[str]) -> tuple[str, ...]:
    """First-level subfolders, if they are classes; one alone is only a place to keep images."""
    if not all("/" in file for file in files):
        return ()
    names = sorted({_top(file) for file in files})
    return tuple(names) if len(names) > 1 else ()


def _labels(files: Files, names: list[str], class_names: tuple[str, ...]) -> Table:
    if FILE in files.names:
        return read_labels(files.read(FILE), names, files.place(FILE))
    if not class_names:
        return Table(None, 0, 0)
    class_of = {name: number for number, name in enumerate(class_names)}
    return Table(torch.tensor([class_of[_top(file)] for file in names]), len(class_names), 0)


def _top(file: str) -> str:
    return file.split("/", 1)[0]
