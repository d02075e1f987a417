"""Checkpoints that are whole or absent.

A checkpoint is a folder ``step_XXXXXXXX`` of safetensors files, a ``state.json`` of plain values, and a
``manifest.json`` with the size and SHA-256 of each. It is written under a temporary name, flushed to the disk and
renamed, so a crash at any moment leaves the earlier ones as they were. Everything is verified on load, and nothing is
ever unpickled.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.whole_files import sync
from training.sharding import is_sharded, like

SNAPSHOTS, AVERAGES = "ema_snapshots", "averages"
"""Folders of a run whose contents are kept like checkpoints, and are none: no training goes on from them."""
MANIFEST = "manifest.json"
STATE = "state.json"
_FOLDER = re.compile(r"step_(\d{8,})")
_NAME = re.compile(_FOLDER.pattern + r"(?:_[\w.-]+)?")


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, or of another network."""


class DamagedError(CheckpointError):
    """A checkpoint, or what is kept like one, whose files are not those that were written.

    Attributes:
        path: of the checkpoint.
        fault: what is wrong with it, in words.
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{kind_of(path.parent)} {path} is damaged: {fault}. Delete that folder {_instead(path)}")
        self.path, self.fault = path, fault


def kind_of(folder: Path) -> str:
    """What the entries of a folder are, in words."""
    return {SNAPSHOTS: "snapshot of averages", AVERAGES: "average"}.get(folder.resolve().name, "checkpoint")


def _instead(path: Path) -> str:
    """What serves in the place of a damaged one."""
    if path.resolve().parent.name == SNAPSHOTS:
        return "to go on without it; averages of other widths are then made of the others, and fit less well"
    if path.resolve().parent.name == AVERAGES:
        return "and make it again by --mode=average"
    older = [p for p in Checkpoints(path.parent).list() if step_of(p) < step_of(path)]
    return f"to go on without it; {f'the next older one is {older[-1].name}' if older else 'there is no older one'}"


class Checkpoints:
    """The checkpoints of one run, or its snapshots of averages.

    Args:
        folder: where they lie; made when the first is saved.
        keep: how many of the newest are kept, at least 1.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least the newest checkpoint must be kept")
        self.folder = Path(folder)
        self.keep = keep

    def list(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((p for p in found if _FOLDER.fullmatch(p.name)), key=step_of)

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return max(self.list(), key=step_of, default=None)

    def newest_whole(self) -> "tuple[Path | None, Sequence[DamagedError]]":
        """The newest checkpoint that is not damaged, or None where there is none; and what is wrong with newer ones.

        Raises:
            DamagedError: all are damaged; of the newest.
        """
        faults: list[DamagedError] = []
        for path in reversed(self.list()):
            try:
                verify(path)
                return path, faults
            except DamagedError as error:
                faults.append(error)
        if faults:
            raise faults[0]
        return None, faults

    def remove_after(self, step: int) -> None:
        """Delete those of later steps, which are to be done anew."""
        for path in self.list():
            if step_of(path) > step:
                shutil.rmtree(path)

    def set_aside(self, path: Path) -> Path:
        """Rename a damaged checkpoint, so that it is one no more; returns where it is then."""
        aside = path.with_name(f"damaged_{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        return path.rename(aside)

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a step, then remove those beyond ``keep``.

        Args:
            step: number of finished training steps.
            tensors: file name (without suffix) -> tensors.
            state: plain values, stored as JSON.

        Raises:
            OSError: it cannot be written; those before are as they were.
        """
        try:
            return self._save(step, tensors, state)
        except (OSError, SafetensorError) as error:  # the latter: a full disk
            newest = self.latest()
            before = "there is none before" if newest is None else f"the last whole one is {newest.name}"
            raise OSError(
                f"the {kind_of(self.folder)} of step {step} cannot be written to {self.folder} ({error}); {before}. "
                "Make room, or allow writing there, and start again"
            ) from error

    def _save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        target = self.folder / f"step_{step:08d}"
        temporary = self.folder / f".writing_{target.name}"
        write_files(temporary, tensors, state)
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        if target.exists():  # the same step again: only after the new one is on the disk
            target.rename(self.folder / f".replaced_{target.name}")
        temporary.rename(target)
        sync(self.folder)
        self._remove_leftovers()
        for old in self.list()[: -self.keep]:
            shutil.rmtree(old)
        return target

    def _remove_leftovers(self) -> None:
        for path in self.folder.glob(".replaced_*"):
            whole = self.folder / path.name.removeprefix(".replaced_")
            if not whole.exists():  # a crash between the two renames
                path.rename(whole)
        for path in (*self.folder.glob(".writing_*"), *self.folder.glob(".replaced_*")):
            shutil.rmtree(path)


class BestCheckpoint(Checkpoints):
    """The checkpoint of the best step so far, by whatever measure: one that is saved replaces the one before.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keep=sys.maxsize)

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """See ``Checkpoints.save``; the one before goes when this one is on the disk, of whichever step it is."""
        saved = super().save(step, tensors, state)
        for path in self.list():
            if path != saved:
                shutil.rmtree(path)
        return saved

    def states(self) -> "list[dict[str, Any]]":
        """The plain values of what lies there: of one checkpoint; of two, if the saving of one was cut off.

        What cannot be read is passed over: it is the best of nothing.
        """
        found = []
        for path in self.list():
            with suppress(OSError, ValueError):
                found.append(json.loads((path / STATE).read_text()))
        return [state for state in found if isinstance(state, dict)]


def write_files(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write what a checkpoint holds into a new folder; the arguments are those of ``Checkpoints.save``."""
    folder.mkdir()
    for name, group in tensors.items():
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in group.items()}, folder / f"{name}.safetensors"
        )
    (folder / STATE).write_text(json.dumps(dict(state), indent=2))
    manifest = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint, step_XXXXXXXX, or of averaged weights, step_XXXXXXXX_NAME.

    Raises:
        CheckpointError: the name is not that of a checkpoint.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint; give a folder named step_XXXXXXXX")
    return int(match.group(1))


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Verify and read a checkpoint: (file name -> tensors, plain values).

    Raises:
        CheckpointError: it is missing or damaged; the message names the file, and the remedy.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}; give a folder checkpoints/step_XXXXXXXX")
    names = verify(path)
    tensors = {Path(name).stem: load_file(path / name) for name in names if name.endswith(".safetensors")}
    return tensors, json.loads((path / STATE).read_text())


def verify(path: Path) -> list[str]:
    """Compare the files of a checkpoint with its manifest; returns their names.

    Raises:
        DamagedError: they are not those that were written.
    """
    if not (path / MANIFEST).is_file():
        raise DamagedError(path, f"{MANIFEST} is missing")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(path, f"{MANIFEST} is not readable") from error
    for name in sorted({STATE, *expected}):
        if name not in expected or not (path / name).is_file():
            raise DamagedError(path, f"{name} is missing")
        actual = _fingerprint(path / name)
        if (actual["bytes"], actual["sha256"]) != expected[name]:
            raise DamagedError(path, f"{name} has {actual['bytes']} bytes of {expected[name][0]}, or other content")
    return list(expected)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy weights into a module, all of them or none; into one of shares, the shares.

    Raises:
        CheckpointError: a tensor is missing, extra, or of another shape: the checkpoint is of another architecture.
    """
    own = module.state_dict()
    faults = [f"missing {key}" for key in own if key not in weights]
    faults += [f"unexpected {key}" for key in weights if key not in own]
    faults += [
        f"{key} has shape {tuple(weights[key].shape)}, the network {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"checkpoint {source} is of another architecture: {'; '.join(faults[:3])}{more}. Use the model settings "
            "it was trained with (config.json of its run folder), or another --workdir"
        )
    module.load_state_dict(
        {key: like(own[key], value) for key, value in weights.items()} if is_sharded(module) else dict(weights)
    )


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
