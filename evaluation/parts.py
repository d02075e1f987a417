"""Results of a long evaluation, kept batch by batch: a killed run goes on, and several processes share the work.

Each finished batch is one file, written under another name and renamed, so it is whole or absent; its last bytes are a
digest of the others, so what the disk has damaged counts as absent. What is done is what lies in the folder; who
computed it does not matter.
"""

import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data import whole_file

Rows = dict[str, np.ndarray]
"""Column -> values; the first axis of all is that of the column "index"."""
DIGEST_BYTES = 16


class Parts:
    """The folder of the finished batches.

    Args:
        folder: made when the first batch is saved. Its name should tell everything that the values depend on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[tuple[str, int], list[int]] = {}  # (name, time of writing) -> indices, of whole files

    def save(self, rows: Rows) -> None:
        """Write a finished batch."""
        content = io.BytesIO()
        np.savez(content, **rows)  # type: ignore[arg-type]
        with whole_file(self.folder / f"{int(rows['index'][0]):09d}_{os.getpid()}.npz") as draft:
            draft.write_bytes(content.getvalue() + _digest(content.getvalue()))

    def load(self) -> Rows | None:
        """All finished rows, each index once and in order; None where there are none."""
        found = [rows for path in self._files() if (rows := _read(path)) is not None]
        if not found:
            return None
        joined = {key: np.concatenate([rows[key] for rows in found]) for key in found[0]}
        _, first = np.unique(joined["index"], return_index=True)
        return {key: values[first] for key, values in joined.items()}

    def done(self) -> set[int]:
        """Indices that are finished."""
        files = {(path.name, path.stat().st_mtime_ns): path for path in self._files()}
        for file in files.keys() - self._seen.keys():
            if (rows := _read(files[file])) is not None:
                self._seen[file] = rows["index"].tolist()
        return {index for file in files for index in self._seen.get(file, ())}

    def wait(self, indices: Sequence[int], report: Callable[[int], None], every: float = 0.5) -> None:
        """Return when all indices are finished, by whichever process.

        Args:
            indices: what to wait for.
            report: called with the number that is still missing, whenever it has changed.
            every: seconds between looks.
        """
        missing = None
        while left := len(set(indices) - self.done()):
            if left != missing:
                report(left)
            missing = left
            time.sleep(every)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[!.]*.npz"))

    def remove(self) -> None:
        """Delete the folder: the results lie elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path) -> Rows | None:
    whole = path.read_bytes()
    content, digest = whole[:-DIGEST_BYTES], whole[-DIGEST_BYTES:]
    if digest != _digest(content):
        return None  # damaged on the disk: computed again
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
