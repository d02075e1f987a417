"""The record of a run: one JSON object a line in ``metrics.jsonl``, and the same in TensorBoard."""

import json
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data import whole_file, writing


class Metrics:
    """Writer of scalars and pictures; use it as a context.

    When a run resumes, lines of steps that will be done again are removed, so that each step stands there once.

    Args:
        folder: the run folder.
        start_step: step from which the run goes on.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self._rewind(start_step)
        with writing(self.path):
            self._file = self.path.open("a")
        self._folder, self._start_step = self.path.with_name("tensorboard"), start_step
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)

    @cached_property
    def _board(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # here, because the first step need not wait for it

        return SummaryWriter(str(self._folder), purge_step=self._start_step + 1)

    def _rewind(self, start_step: int) -> None:
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step(line) <= start_step]
        with whole_file(self.path) as draft:
            draft.write_text("".join(line + "\n" for line in kept))

    def log(self, step: int, **values: float) -> None:
        """Record scalars of a step.

        Raises:
            OSError: they cannot be written.
        """
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        with writing(self._folder):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Record a picture, uint8 (H, W, 3)."""
        self._board.add_image(name, pixels, step, dataformats="HWC")

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # of what could not be written: ``log`` has told it
            self._file.close()
        if "_board" in vars(self):
            self._board.close()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line that a crash cut off
        return float("inf")
