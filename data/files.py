"""Files by name, wherever they lie: in a folder, or unpacked from a zip as they are asked for."""

import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path


class Files(ABC):
    """A set of files.

    Attributes:
        path: the folder or the archive.
        names: sorted relative paths with forward slashes; what starts with a dot is passed over, and so is what
            macOS adds to archives.
    """

    path: Path
    names: list[str]

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a file; safe to call from several threads.

        Raises:
            OSError: it cannot be read. The message names it.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Its length in bytes."""

    def place(self, name: str) -> str:
        """The file for messages."""
        return f"{self.path / name}"


class Folder(Files):
    """All files under a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = []
        for folder, subfolders, names in os.walk(path):
            subfolders[:] = [name for name in subfolders if _visible(name)]
            inside = Path(folder).relative_to(path)
            self.names += [(inside / name).as_posix() for name in names if _visible(name)]
        self.names.sort()

    def read(self, name: str) -> bytes:
        """See ``Files.read``."""
        return (self.path / name).read_bytes()

    def size(self, name: str) -> int:
        """See ``Files.size``."""
        return (self.path / name).stat().st_size


class Archive(Files):
    """All files in a zip.

    Raises:
        ValueError: the file is no zip, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is not a complete zip archive ({error}); get it again") from error
        members = [info for info in self._zip.infolist() if not info.is_dir()]
        self._members = {info.filename: info for info in members if all(map(_visible, info.filename.split("/")))}
        self.names = sorted(self._members)

    def read(self, name: str) -> bytes:
        """See ``Files.read``; its checksum is verified."""
        try:
            return self._zip.read(self._members[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise OSError(f"{self.place(name)} cannot be unpacked: {error}") from error

    def size(self, name: str) -> int:
        """See ``Files.size``."""
        return self._members[name].file_size


def open_files(path: Path) -> Files:
    """The files of a folder, or of a zip.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is a file, but no zip.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is nothing at {path}: give an existing folder, or a .zip, as root")
    return Archive(path)


def _visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))
