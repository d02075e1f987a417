"""Files that are whole or absent, whatever becomes of the process that writes them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write a file (or a folder) to; in the end it is flushed to the disk, and takes the name ``path``.

    Before that, or if the writing fails, what was at ``path`` is as it was.

    Args:
        path: of the file; its folder is made.

    Raises:
        OSError: it cannot be written; see ``writing``.
    """
    draft = path.with_name(f".writing_{path.name}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(draft)
            yield draft
            for part in (*draft.rglob("*"), draft):
                _sync(part)
            if draft.is_dir() and path.is_dir():
                shutil.rmtree(path)
            draft.replace(path)
    finally:
        with suppress(OSError):
            _remove(draft)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context in which ``path`` is written to.

    Raises:
        OSError: that is not possible; the message names the path and the remedy.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter: a full disk
        raise OSError(
            f"{path} cannot be written ({error}). Make room, or allow writing there, and start again"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
