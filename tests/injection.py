"""What the tests of faults do to runs, and what must be true of a run folder whatever was done to it.

SCORE_SDE_FAULTS=long does it at many more moments.
"""

import os
import random
import re
import shutil
import time
from pathlib import Path

from command_line import TINY

import run_lib
from training.checkpoint import STATE, Checkpoints, verify

STEPS = 30
SCORES = ["--config.likelihood.batch_size=1", "--config.likelihood.num_images=4"]
AVERAGES = ["--config.training.averages=power:0.1,power:0.2"]
TRAINING = [
    *TINY,
    *SCORES,
    *AVERAGES,
    "--config.training.ema_snapshot_every=7",
    "--config.likelihood.method=euler",
    "--config.likelihood.steps=3",
    "--config.data.name=arrays",
    "--config.data.workers=2",
    f"--config.training.steps={STEPS}",
    "--config.training.sample_every=10",
    "--config.training.evaluate_every=10",
    "--config.training.evaluate_images=6",
    "--config.training.keep_checkpoints=100",
]
"""Arguments of a training that writes all that a training can write, and reads points from a file in threads."""
WITHOUT_FIDELITY = "import sys; sys.modules['torch_fidelity'] = None\n"
"""Run first, it saves the seconds of an import: the Fréchet distance is our own."""
LONG = os.environ.get("SCORE_SDE_FAULTS") == "long"
MANY, SOME = (20, 5) if LONG else (1, 1)
"""Times that a fault is injected."""
LASTING = ("train", "sample", "likelihood", "evaluate")
"""Modes that run for hours or days, into which it is injected ``MANY`` times."""
DISTURBED = tuple(run_lib.MODES) if LONG else LASTING
"""Modes that get more than a SIGKILL, which all get always."""
VOLATILE = re.compile(rb'"(images_per_second|flops_per_second|seconds_to_go|seconds|date)": [^,\n}]*')
HOOK = """
import errno, os, signal, sys

def hook(event, arguments, left=[{number}], tally=os.open({tally!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
    changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
    if event == "open" and arguments[2] is not None:
        changes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    path = os.fsdecode(arguments[0]) if changes and not isinstance(arguments[0], int) else "/"
    if not os.path.isabs(path) or path.startswith({folder!r}):
        os.write(tally, b".")
        left[0] -= 1
        {fault}

sys.addaudithook(hook)
"""
DIE = "if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)"
REFUSE = "if left[0] <= 0: raise OSError(errno.{0}, os.strerror(errno.{0}), path)"


def moments(what, mode=None):
    """Shares of a duration at which a fault is injected: one at random in each of ``MANY`` or ``SOME`` equal parts."""
    rng, count = random.Random(f"{what} {mode}"), MANY if mode in LASTING else SOME
    return [(part + rng.random()) / count for part in range(count)]


def choices(what, of):
    """Some of these without end, each about as often as any other, in an order that is random."""
    rng = random.Random(what)
    while True:
        yield from rng.sample(of, len(of))


REPORT = ("report.html", "commands.jsonl", "nearest.npz")
"""What tells of the calls themselves, and cannot fail one: tests/cli/test_cli_report.py."""


def contents(folder):
    """{relative path: content} of a run, but for what differs between equal ones: dates, speeds, reports of calls."""

    def content(path):
        if path.suffix in (".json", ".jsonl"):
            return VOLATILE.sub(b"", path.read_bytes())
        return path.read_bytes()

    paths = (path for path in sorted(Path(folder).rglob("*")) if path.is_file() and "tensorboard" not in path.parts)
    told = (path for path in paths if not path.name.removeprefix(".").startswith(REPORT))
    return {path.relative_to(folder).as_posix(): content(path) for path in told}


def whole_ones(folder):
    """``contents`` without drafts, locks, and parts of a result."""
    return {name: content for name, content in contents(folder).items() if "/." not in f"/{name}"}


def newest_step(folder):
    """Of the last checkpoint; 0 where there is none."""
    return max((int(path.name.removeprefix("step_")) for path in folder.glob("checkpoints/step_*")), default=0)


class Subject:
    """A mode that is started any number of times on the same run, and what it does undisturbed.

    Args:
        launcher: starts it.
        scratch: a folder for it alone.
        base: the run that it works on; None for a new one.
        *arguments: of the command line.
        first: code that every process runs first.

    Attributes:
        folder: of the run.
        before: contents of the run before.
        after: likewise afterwards.
        printed: its output.
        seconds: that it takes.
        operations: on files of the run, that change something.
    """

    def __init__(self, launcher, scratch, base, *arguments, first=""):
        self.launcher, self.base, self.first = launcher, base, first
        self.arguments = [*arguments, f"--workdir={scratch / 'run'}"]
        self.folder, self.log, self._tally, self._done = (scratch / name for name in ("run", "log", "tally", "done"))
        self.renew()
        self.before = contents(self.folder)
        started = time.monotonic()
        assert self.wait(self.start(at_operation=0)) == 0, self.log.read_text()
        self.seconds = time.monotonic() - started
        self.operations = self._tally.stat().st_size
        self.after = contents(self.folder)
        shutil.copytree(self.folder, self._done)
        self.printed = self.log.read_text()

    def renew(self, done=False):
        """Make the run what it was before, or afterwards."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if (base := self._done if done else self.base) is not None:
            shutil.copytree(base, self.folder)

    def start(self, *more, before="", at_operation=None, fault="pass", log=None, **env):
        """Its process id; ``fault`` happens at the file operation of that number (the first is 1)."""
        if at_operation is not None:
            names = {"folder": str(self.folder), "tally": str(self._tally)}
            before += HOOK.format(number=at_operation, fault=fault, **names)
        return self.launcher.start(log or self.log, *self.arguments, *more, before=self.first + before, **env)

    def wait(self, pid):
        """Its exit status; that of a signal is negative."""
        return self.launcher.wait(pid)

    def strike(self, share, number):
        """Start afresh, and send a signal at that share of its time; returns its exit status.

        Where it had ended by itself, again, now that its time is known better.
        """
        while True:
            self.renew()
            started, pid = time.time(), self.start()
            time.sleep(share * self.seconds)
            os.kill(pid, number)
            status = self.wait(pid)
            if status or "stopped by" in self.log.read_text():
                return status
            assert contents(self.folder) == self.after  # the signal came too late
            self.seconds = min(self.seconds, self.log.stat().st_mtime - started)  # the last that it said

    def fault(self, status, log=None):
        """The one line in which it says what kept it from going on."""
        log = (log or self.log).read_text()
        assert status == 1, log
        assert "Traceback" not in log
        (line,) = (line for line in log.splitlines() if line.startswith("error: "))
        assert log.endswith(f"{line}\n")
        return line

    def check_no_part_is_taken_for_the_whole(self, but="/"):
        """Every file that can be seen is as before, or as it will be; records are a beginning; nothing is lost.

        Names that begin with ``but`` are passed over.
        """
        found = contents(self.folder)
        for name, content in found.items():
            if any(part.startswith(".") for part in Path(name).parts) or name.startswith((but, "best/")):
                continue
            if name.endswith(".jsonl"):
                assert self.after[name].startswith(content[: content.rfind(b"\n") + 1])
            else:
                assert content in (self.before.get(name), self.after.get(name)), name
        assert self.before.keys() <= found.keys()
        for path in Checkpoints(self.folder / "best").list():  # the best so far: the checkpoint of that step
            for name in verify(path):
                content = found[f"best/{path.name}/{name}"]
                assert name == STATE or content == self.after[f"checkpoints/{path.name}/{name}"]

    def check_it_goes_on(self, but="/"):
        """From where it was, to the contents of a run that was not disturbed, ``but`` for names that begin so."""
        step = newest_step(self.folder)
        parts = [len(list(parts.glob("[!.]*.npz"))) for parts in self.folder.glob("likelihood/.step_*")]
        imported = "--mode=import" in self.arguments and (self.folder / "config.json").exists()
        status = self.wait(self.start())
        log = self.log.read_text()
        assert status == (1 if imported else 0), log
        assert imported == ("holds a run already" in log)
        ends = ({n: c for n, c in end.items() if not n.startswith(but)} for end in (contents(self.folder), self.after))
        assert next(ends) == next(ends)
        assert "Traceback" not in log
        if step and "--mode=train" in self.arguments:
            assert f"continuing {self.folder} from step {step}\n" in log
        for scored in filter(None, parts):
            assert f"{scored} of 4 samples were scored by an earlier run" in log
