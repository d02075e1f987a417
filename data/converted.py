"""Image files decoded once for all, into an array on the disk that training reads without decoding.

The array is an ordinary ``.npy`` of uint8 (N, C, H, W), mapped into memory; beside it a ``.json`` tells what it was
made of, which images could not be read, and a checksum of every block of rows. It is made under another name, block by
block: whoever is interrupted goes on with the next block. Its name holds a digest of the images' names and sizes and of
the crop, so another selection, crop or size is another array.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.dataset import Batch, Dataset
from data.image_files import ImageFiles

BLOCK = 1024
"""Images between two saved states of the conversion, and in one checksum."""
VERSION = 1
"""Of the preprocessing (``data.images``): arrays of another version are not used."""


class ConvertedImages(Dataset):
    """The samples of image files, read from an array on the disk; made here where it is not there yet.

    Images that cannot be read end the conversion with their name, or are left out where ``source`` skips them: then
    this data set has fewer samples.

    Args:
        source: the image files.
        folder: of the arrays; made if it does not exist.

    Attributes:
        path: of the array.
        skipped: name -> reason, of the images that are left out.
        checksum: of all pixels, eight hexadecimal digits: equal for equal preprocessing of equal images.

    Raises:
        ValueError: an image cannot be read, or the array is damaged.
        OSError: there is no room on the disk, or the folder cannot be written.
    """

    def __init__(self, source: ImageFiles, folder: Path | str) -> None:
        self.name = source.name
        self.shape = source.shape
        self.quantizer = source.quantizer
        self.num_classes, self.num_attributes = source.num_classes, source.num_attributes
        self.label_names = source.label_names
        folder = Path(folder).expanduser()
        self.path = folder / _file_name(source)
        with _alone(self.path):
            about = _read_json(self.path.with_suffix(".json"))
            if about is None or not self.path.exists():
                about = _convert(source, self.path)
            self._pixels = _open_verified(self.path, about)
        self.skipped: dict[str, str] = about["skipped"]
        if self.skipped and not source.skips:
            name, reason = next(iter(self.skipped.items()))
            raise ValueError(
                f"{len(self.skipped)} of the {len(source)} images of {source.name} could not be read, such as {name} "
                f"({reason}): mend them, or leave them out by --config.data.corrupt=skip"
            )
        self.checksum = _checksum(about["checksums"])
        kept = [row for row, name in enumerate(source.names) if name not in self.skipped]
        self.names = [source.names[row] for row in kept]
        self._rows = np.array(kept)
        self._labels = None if source.labels is None else source.labels[kept]
        if not kept:
            raise ValueError(f"none of the {len(source)} images of {source.name} can be read")

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """See ``Dataset.fetch``."""
        indices = self._checked(indices)
        rows = self._rows[np.array(indices, dtype=np.int64)]
        x = torch.from_numpy(np.asarray(self._pixels[rows]))
        return Batch(x, None if self._labels is None else self._labels[indices])


def _file_name(source: ImageFiles) -> str:
    sizes = [_size(source, name) for name in source.names]
    what = [VERSION, source.shape, source.crop, list(zip(source.names, sizes, strict=True))]
    digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=6).hexdigest()
    return f"{source.name.replace('/', '_')}_{len(source)}_{source.crop}_{source.shape[-1]}px_{digest}.npy"


def _size(source: ImageFiles, name: str) -> int:
    try:
        return source.files.size(name)
    except OSError:  # such as a link that leads nowhere; decoding it tells
        return -1


def _convert(source: ImageFiles, path: Path) -> dict[str, Any]:
    """Decode all images into the array; returns what its .json holds."""
    shape = (len(source), *source.shape)
    draft, notes = path.with_suffix(".npy.writing"), path.with_suffix(".json.writing")
    about = _read_json(notes) if draft.exists() else None
    if about is None:
        _check_room(path.parent, shape)
        about = {"images": source.name, "shape": shape, "crop": source.crop, "skipped": {}, "checksums": []}
        pixels = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
    else:
        pixels = np.lib.format.open_memmap(draft, mode="r+")
    done = BLOCK * len(about["checksums"])
    print(f"converting {len(source) - done} images of {source.name}, once for all", flush=True)
    bar = tqdm(total=len(source), initial=done, desc="converting", unit="image", disable=None, dynamic_ncols=True)
    with bar, ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
        for start in range(done, len(source), BLOCK):
            rows = range(start, min(start + BLOCK, len(source)))
            for row, image in zip(rows, pool.map(lambda row: _decode(source, row), rows), strict=True):
                if isinstance(image, str):
                    about["skipped"][source.names[row]] = image
                    tqdm.write(f"skipped, {len(about['skipped'])} so far: {image}")
                else:
                    pixels[row] = image
                bar.update()
            pixels.flush()
            about["checksums"].append(zlib.crc32(pixels[rows.start : rows.stop].data))
            _write_json(notes, about)
    del pixels
    os.replace(draft, path)
    about["verified"] = _stamp(path)
    _write_json(path.with_suffix(".json"), about)
    notes.unlink()
    left_out = f", {len(about['skipped'])} left out as unreadable" if about["skipped"] else ""
    print(f"{len(source)} images of {source.name} are in {path}{left_out}; checksum {_checksum(about['checksums'])}")
    return about


def _decode(source: ImageFiles, row: int) -> np.ndarray | str:
    """The pixels of an image; or, where such are skipped, why it cannot be read."""
    try:
        return source.decode(row).numpy()
    except (ValueError, OSError) as error:
        if source.skips:
            return str(error)
        raise ValueError(
            f"{error}; or leave such images out, by --config.data.corrupt=skip. What is converted is kept"
        ) from error


def _check_room(folder: Path, shape: tuple[int, ...]) -> None:
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the {shape[0]} converted images take {needed / 1e9:.2f} GB, and {folder.absolute()} has {free / 1e9:.2f} "
            "GB left: give another folder as data.cache, or --config.data.cache= to decode images each time"
        )


def _open_verified(path: Path, about: dict[str, Any]) -> np.ndarray:
    """Map the array, and compare it with its checksums unless the file is untouched since that was done."""
    damaged = f"{path} does not hold what was written: delete it, and the images are converted anew"
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(damaged) from error
    if about.get("verified") == _stamp(path):
        return pixels
    if list(pixels.shape) != list(about["shape"]) or pixels.dtype != np.uint8:
        raise ValueError(damaged)
    starts = range(0, len(pixels), BLOCK)
    bar = tqdm(starts, desc=f"verifying {path.name}", disable=None, leave=False)
    for start, checksum in zip(bar, about["checksums"], strict=True):
        if zlib.crc32(pixels[start : start + BLOCK]) != checksum:
            raise ValueError(damaged)
    with suppress(OSError):  # a folder that may only be read: it is verified each time
        _write_json(path.with_suffix(".json"), {**about, "verified": _stamp(path)})
    return pixels


def _stamp(path: Path) -> list[int]:
    """What changes when a file is written or copied."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _checksum(blocks: Sequence[int]) -> str:
    return f"{zlib.crc32(np.array(blocks, dtype='<u4').tobytes()):08x}"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes out while the array is made or verified; they wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        if path.exists():  # a folder that may only be read
            yield
            return
        raise OSError(
            f"the converted images cannot be kept in {path.parent} ({error.strerror}): give another folder as "
            "data.cache, or --config.data.cache= to decode images each time"
        ) from error
    with lock:
        try:
            import fcntl  # not on Windows

            fcntl.flock(lock, fcntl.LOCK_EX)
        except ImportError:
            pass
        yield


def _read_json(path: Path) -> dict[str, Any] | None:
    """The notes beside an array; None where there are none that can be read."""
    try:
        about = json.loads(path.read_text())
        return about if {"shape", "skipped", "checksums"} <= set(about) else None
    except (OSError, ValueError, TypeError):
        return None


def _write_json(path: Path, about: dict[str, Any]) -> None:
    draft = path.with_suffix(path.suffix + ".new")
    draft.write_text(json.dumps(about))
    os.replace(draft, path)
