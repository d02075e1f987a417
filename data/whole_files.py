"""Files that are whole or absent, whatever becomes of the process that writes them, and whoever else does."""

import errno
import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

HERE = f".writing_{socket.gethostname()}_"
"""How the names of this machine's drafts begin; the number of the process, and what it writes, follow."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write a file (or a folder) to; in the end it is flushed to the disk, and takes the name ``path``.

    Before that, or if the writing fails, what was at ``path`` is as it was. Of several processes that write it at once
    each has a draft of its own, and the last one's stays.

    Args:
        path: of the file; its folder is made.

    Raises:
        OSError: it cannot be written; see ``writing``.
    """
    scratch = path.with_name(f"{HERE}{os.getpid()}_{path.name}")
    draft = scratch / path.name
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            scratch.mkdir()
            yield draft
            for part in (*draft.rglob("*"), draft):
                sync(part)
            if draft.is_dir():
                _replace_folder(draft, path)
            else:
                draft.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace_folder(draft: Path, path: Path) -> None:
    """A folder replaces none but an empty one: what is there goes aside, as often as other processes put one there."""
    for number in itertools.count():
        if path.is_dir():
            with suppress(FileNotFoundError):  # another one has just put it aside
                path.rename(draft.with_name(f"before{number}"))
        try:
            draft.replace(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


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


def _remove_leftovers(path: Path) -> None:
    """Remove drafts of ``path`` whose processes, of this machine, were killed."""
    name = re.compile(re.escape(HERE) + r"(\d+)_" + re.escape(path.name))
    for scratch in path.parent.glob(f"{HERE}*"):
        match = name.fullmatch(scratch.name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            shutil.rmtree(scratch, ignore_errors=True)


def _alive(process: int) -> bool:
    """Whether there is a process of that number; on Windows, where asking would end it, that is taken for granted."""
    try:
        if os.name == "posix":
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
