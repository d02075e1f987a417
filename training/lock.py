"""One process at a time in a folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from data import writing

FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made; it ends with the process, however that ends.

    Raises:
        ValueError: another process holds it.
        NotADirectoryError: there is a file of that name.
        OSError: the folder cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder as --workdir")
    path = folder / FILE
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    with opened as file:
        if not _take(file, path):
            file.seek(0)
            raise ValueError(
                f"{folder} is in use already ({file.read() or 'by a process that has just begun'}): wait for it to "
                "end, stop it, or use another --workdir"
            )
        try:
            with writing(path):
                file.truncate(0)
                # past the buffer, which a full disk would keep for another error at the end
                os.write(file.fileno(), f"by process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
                folder.rmdir()  # where nothing came of it


def _take(file: IO[str], path: Path) -> bool:
    """Lock the file, if nobody has, and nobody has just removed it."""
    try:
        import fcntl  # not on Windows, where nothing is locked

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a file system that knows no locks
        return True
