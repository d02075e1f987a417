"""The folder of a run: where each result lies, and the configuration that belongs to it."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data import whole_file, writing
from training.checkpoint import AVERAGES, SNAPSHOTS, BestCheckpoint, CheckpointError, Checkpoints, step_of

FIXED = ("data", "sde", "model")
FREE = ("data.root", "data.workers", "data.cache", "data.corrupt", "model.dropout", "model.precision")
"""A run's weights belong to its data, process and network; all else, and what is in FREE, may change on resuming."""
RANGE = ("data.low", "data.high")
"""What of the data is the network's own, where weights came without data."""


class RunFolder:
    """Paths of a run, and its stored configuration.

    Args:
        path: the folder; made when something is written.
        keep: checkpoints that are kept.
    """

    def __init__(self, path: Path | str, keep: int = 2) -> None:
        self.path = Path(os.path.expanduser(path))
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep)
        self.snapshots = Checkpoints(self.path / SNAPSHOTS, keep=sys.maxsize)
        self.best = BestCheckpoint(self.path / "best")
        self.averages = self.path / AVERAGES
        self.samples = self.path / "samples"
        self.likelihood = self.path / "likelihood"
        self.evaluation = self.path / "evaluation"
        self.dequantizer = Checkpoints(self.path / "dequantizer" / "checkpoints", keep=1)

    @property
    def config_path(self) -> Path:
        """The resolved configuration, as JSON."""
        return self.path / "config.json"

    def stored_config(self) -> dict[str, Any] | None:
        """The configuration of the run, or None where there is no run yet.

        Raises:
            ValueError: the file is not readable.
        """
        if not self.config_path.exists():
            return None
        try:
            stored = json.loads(self.config_path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{self.config_path} is not valid JSON ({error}); restore it, or use another --workdir"
            ) from error
        if not isinstance(stored, dict):
            raise ValueError(f"{self.config_path} holds no settings; restore it, or use another --workdir")
        return stored

    def changes(self, config: Mapping[str, Any], fixed: Sequence[str] = FIXED) -> list[str]:
        """What differs from the stored configuration, as "key: old -> new"; nothing where there is no run yet.

        Args:
            config: the resolved configuration.
            fixed: sections that must be those of the run's weights.

        Raises:
            ValueError: a setting of a fixed section differs.
        """
        stored = self.stored_config()
        if stored is None:
            return []
        before, after = dict(_flat(stored)), dict(_flat(json.loads(json.dumps(config))))
        changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        without_data = before.get("data.name") == "none"
        fatal = [
            key
            for key in changed
            if key in before
            and key.split(".")[0] in fixed
            and key not in FREE
            and not (without_data and key.startswith("data.") and key not in RANGE)
        ]
        if fatal and self.checkpoints.latest() is not None:
            listing = ", ".join(f"{key} is {before.get(key)!r} there and {after.get(key)!r} now" for key in fatal[:4])
            raise ValueError(
                f"{self.path} holds a run with other settings: {listing}. Use another --workdir for a new run, or "
                "leave these settings as they are to use this one"
            )
        return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in changed]

    def store_config(self, config: Mapping[str, Any]) -> None:
        """Make the folder, and put the configuration in it."""
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; give a folder as --workdir")
        with whole_file(self.config_path) as draft:
            draft.write_text(json.dumps(config, indent=2))

    def check_folders(self) -> None:
        """Fail now, and not hours later, where a folder that will be written to is none, or may not be.

        Raises:
            OSError: that is so.
        """
        stored = (self.checkpoints, self.snapshots, self.best)
        for folder in (*(each.folder for each in stored), self.samples, self.likelihood, self.evaluation):
            if not os.path.lexists(folder):  # it is made when it is needed
                continue
            if not folder.is_dir():
                raise NotADirectoryError(
                    f"{folder} is no folder, but results of the run are to be put there: move it away, and start again"
                )
            probe = folder / ".probe"
            with writing(folder):
                probe.mkdir(exist_ok=True)
                probe.rmdir()

    def starting_point(self, path: Path | str | None = None) -> Path | None:
        """The checkpoint from which training goes on: the one asked for, or the newest; None for a new run.

        Of the newest ones those that are damaged are renamed, and told.

        Raises:
            CheckpointError: the run has a newer one, of a past that would mix with the new one.
        """
        if path is None:
            newest, faults = self.checkpoints.newest_whole()
            for error in faults:
                aside = self.checkpoints.set_aside(error.path)
                print(f"{error.path.name} is damaged: {error.fault}. It is kept as {aside}, and left aside")
            return newest
        newest = self.checkpoints.latest()
        found = self.checkpoint(path)
        if newest is not None and step_of(newest) > step_of(found):
            raise CheckpointError(
                f"{newest} is newer than {found}; to go on from the older one, use another --workdir, or first delete "
                "the newer ones"
            )
        return found

    def checkpoint(self, path: Path | str | None = None) -> Path:
        """The checkpoint to use: the one asked for, or the newest that is not damaged.

        Raises:
            CheckpointError: there is none.
        """
        found, faults = (Path(os.path.expanduser(path)), []) if path else self.checkpoints.newest_whole()
        for error in faults:
            print(f"{error.path.name} is damaged, and passed over: {error.fault}")
        if found is None:
            raise CheckpointError(
                f"no checkpoint in {self.checkpoints.folder}; train first (--mode=train with the same --workdir), "
                "or name one by --checkpoint"
            )
        step_of(found)
        return found

    def holds(self, checkpoint: Path) -> bool:
        """Whether a checkpoint or an average is this run's own; those of another have the same names."""
        return checkpoint.resolve().parent in (self.checkpoints.folder.resolve(), self.averages.resolve())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
