"""Any folder of images, nested or flat, with a fixed held-out part.

Whether an image is held out depends on its relative path alone (a stable hash of it), so the split is the same on
every machine and an image keeps its side when others are added. Only where this would leave a side empty does the
image with the smallest, or the greatest, hash change over.
"""

import os
from pathlib import Path

import torch

from data.image_files import ImageFiles
from data.randomness import derive_seed
from sde_lib.registry import lookup

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder(ImageFiles):
    """The images under ``root`` in the sorted order of their paths.

    If every image lies in a subfolder, and there are at least two of these, the first-level subfolders are the classes
    (``class_names``, sorted); otherwise the images are unlabelled. Names that start with a dot are passed over.

    Args:
        split: "train", or "test" for the held-out images.
        root: the folder.
        image_size: side of the square images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: a key of ``data.images.CROPS``.
        holdout: expected fraction of held-out images, in [0, 1). From two images on, and unless it is 0, both splits
            hold at least one.
        low: model value of level 0.
        high: model value of level 255.

    Raises:
        FileNotFoundError: ``root`` is no folder, or holds no images.
        ValueError: an option is not accepted, or the split is empty.
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
    ) -> None:
        root = Path(root).expanduser()
        found = find_images(root)
        train, test = split_by_name(found, holdout)
        files = lookup({"train": train, "test": test}, split, "split of folder")
        if not files:
            raise ValueError(
                f"the {split} split of {root} is empty: {len(found)} image(s) in all, {holdout=}; "
                "add images or choose another holdout"
            )
        self.class_names = _class_names(found)
        class_of = {name: number for number, name in enumerate(self.class_names)}
        labels = torch.tensor([class_of[_top(file)] for file in files]) if class_of else None
        super().__init__(
            f"folder/{root.name}",
            root,
            files,
            labels=labels,
            num_classes=len(class_of),
            image_size=image_size,
            channels=channels,
            crop=crop,
            low=low,
            high=high,
        )


def find_images(root: Path) -> list[str]:
    """Sorted relative paths (with forward slashes) of all images under ``root``.

    Raises:
        FileNotFoundError: ``root`` is no folder, or holds no images.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no image folder at {root}: give the path of an existing folder as root")
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        images = (name for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith("."))
        inside = Path(folder).relative_to(root)
        found += [(inside / name).as_posix() for name in images]
    if not found:
        raise FileNotFoundError(
            f"no images under {root}: looked for *{', *'.join(EXTENSIONS)} in it and its subfolders"
        )
    return sorted(found)


def split_by_name(files: list[str], holdout: float) -> tuple[list[str], list[str]]:
    """Part the files into (train, test): a file is held out if the hash of its path falls below ``holdout``.

    Raises:
        ValueError: ``holdout`` is outside [0, 1).
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be a fraction in [0, 1), got {holdout!r}")
    hashes = {file: derive_seed("holdout", file) for file in files}
    held_out = {file for file in files if hashes[file] < holdout * 2**63}
    if holdout > 0 and len(files) > 1:  # neither split is empty
        by_hash = sorted(files, key=hashes.__getitem__)
        held_out = (held_out | {by_hash[0]}) - {by_hash[-1]}
    return [file for file in files if file not in held_out], [file for file in files if file in held_out]


def _class_names(files: list[str]) -> tuple[str, ...]:
    """First-level subfolders, if they are classes; one alone is only a place to keep images."""
    if not all("/" in file for file in files):
        return ()
    names = sorted({_top(file) for file in files})
    return tuple(names) if len(names) > 1 else ()


def _top(file: str) -> str:
    return file.split("/", 1)[0]
