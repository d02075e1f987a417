"""What every call leaves: a line of ``commands.jsonl``, and the report of its run."""

import json
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime

import torch

from data import writing
from evaluation.report import COMMANDS, NAME, Source, write_report
from modes.provenance import device_name
from modes.run import Run
from training import builders


def report_run(run: Run) -> None:
    """The mode: make the report anew, from the files of the run alone.

    Raises:
        ValueError: there is no run, or one of another process or network than the settings given.
    """
    if run.folder.stored_config() is None:
        raise ValueError(f"there is no run in {run.folder.path}; train first, or give its folder as --workdir")
    run.folder.changes(run.config.to_dict(), fixed=("sde", "model"))
    _write(run)


def _write(run: Run) -> None:
    print(f"report: {write_report(source(run))}", flush=True)


def conclude(run: Run, mode: str, arguments: Sequence[str], seconds: float) -> None:
    """Note a call that went well, and make the report of its run; what goes wrong here is a line, and no failure.

    Args:
        run: what was done; of several processes the first one writes.
        mode: which mode did it.
        arguments: of the command line, as they were typed.
        seconds: how long it took.
    """
    if run.rank:
        return
    try:
        record(run, mode, arguments, seconds)
        _write(run)
    except Exception as error:  # the work itself is done and saved
        fault = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: no {NAME}: {fault}", flush=True)


def record(run: Run, mode: str, arguments: Sequence[str], seconds: float) -> None:
    """Append the call to the run's commands."""
    shared = f", {run.world_size} processes" if run.world_size > 1 else ""
    line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": mode,
        "command": shlex.join(["python", *arguments]),
        "seconds": round(seconds, 2),
        "machine": f"{device_name(run.experiment.device)}{shared}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}",
    }
    path = run.folder.path / COMMANDS
    with writing(path), path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def source(run: Run) -> Source:
    """What the report is made of."""
    return Source(
        folder=run.folder.path,
        config=run.folder.stored_config() or {},
        default=run.default.to_dict(),
        command=run.command,
        dataset=lambda split: builders.build_dataset(run.config, split),
        training_images=run.config.reporting.training_images,
    )
