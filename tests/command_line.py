"""The command line, in this process for speed, and as processes that can be killed; the fixtures are for all tests."""

import contextlib
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
from absl import flags

import run_lib

ROOT = Path(run_lib.__file__).parent
TINY = [
    "--config=configs/toy2d.py",
    "--config.model.width=8",
    "--config.model.blocks=1",
    "--config.model.precision=float32",
    "--config.model.dropout=0.2",
    "--config.data.size=100",
    "--config.training.batch_size=8",
    "--config.training.steps=12",
    "--config.training.warmup_steps=0",
    "--config.training.decay=none",
    "--config.training.checkpoint_every=5",
    "--config.training.log_every=1",
    "--config.sampling.steps=3",
    "--config.sampling.num_images=6",
    "--config.sampling.batch_size=4",
    "--config.likelihood.num_images=4",
    "--config.likelihood.rtol=0.1",
    "--config.likelihood.atol=0.1",
]
"""The toy recipe, made to train in a second; in float32, so that its numbers do not depend on the machine."""
DIGITS = [
    "--config=configs/digits.py",
    "--config.model.channels=8",
    "--config.model.channel_mult=1,1",
    "--config.model.precision=float32",
    "--config.training.steps=4",
    "--config.training.batch_size=8",
    "--config.training.warmup_steps=0",
    "--config.training.ddpm_steps=30",
    "--config.sampling.steps=1",
    "--config.sampling.num_images=1",
    "--config.sampling.trajectory=0",
    "--config.likelihood.num_images=3",
    "--config.likelihood.method=euler",
    "--config.likelihood.steps=3",
    "--config.likelihood.samples=2",
    "--config.interpolation.pairs=2",
    "--config.interpolation.moments=3",
    "--config.interpolation.rtol=0.01",
    "--config.interpolation.atol=0.01",
    "--config.dequantizer.steps=3",
    "--config.dequantizer.batch_size=4",
    "--config.dequantizer.channels=4",
    "--config.dequantizer.layers=2",
]
"""The recipe of images, likewise."""


class Outcome(NamedTuple):
    """Exit status, and what stood on stdout and stderr."""

    status: int
    out: str
    err: str

    def fault(self):
        """The one line of a mistake of the user's: exit status 1 or 2, one line on stderr, nothing of a traceback."""
        assert self.status in (1, 2), self
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        assert "Traceback" not in self.out + self.err
        return self.err.removeprefix("error: ").removesuffix("\n")

    def good(self):
        """The output of a run in which nothing went wrong."""
        assert self.status == 0, self.err
        assert self.err == ""
        return self.out


def run_cli(*arguments):
    """``python run_lib.py ARGUMENTS`` in this process."""
    values = flags.FLAGS
    values.unparse_flags()
    for name in list(values):
        if name.startswith("config."):  # overrides of an earlier call
            delattr(values, name)
        else:
            values[name].unparse()
    sys.modules.pop("config_config", None)  # the recipe of an earlier call
    before, handlers, hook = sys.argv, logging.root.handlers[:], threading.excepthook
    sys.argv = ["run_lib.py", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the load_module")  # ml_collections loads recipes by an old function
            run_lib.cli()
    except SystemExit as leaving:
        status = leaving.code or 0
    finally:
        sys.argv = before
        logging.root.handlers[:] = handlers
        threading.excepthook = hook
    return Outcome(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def cli():
    return run_cli


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, where nothing of ours lies."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def _trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    outcome = run_cli("--mode=train", f"--workdir={folder}", *TINY)
    assert outcome.status == 0, outcome.err
    return folder


@pytest.fixture
def trained(_trained, tmp_path):
    """A finished run of 12 steps with checkpoints 10 and 12, to do with as one likes."""
    return shutil.copytree(_trained, tmp_path / "trained")


@pytest.fixture(scope="session")
def tiny_digits():
    return DIGITS


@pytest.fixture(scope="session")
def _trained_digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    outcome = run_cli("--mode=train", f"--workdir={folder}", *DIGITS)
    assert outcome.status == 0, outcome.err
    shutil.rmtree(folder / "likelihood")
    return folder


@pytest.fixture
def digits(_trained_digits, tmp_path):
    """A finished run of images, not yet scored, to do with as one likes."""
    return shutil.copytree(_trained_digits, tmp_path / "digits")


@pytest.fixture(scope="session")
def _trained_on_labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels") / "run"
    flags = ["--config.model.conditional=True", "--config.training.learning_rate=0.05"]
    outcome = run_cli("--mode=train", f"--workdir={folder}", *DIGITS, *flags)
    assert outcome.status == 0, outcome.err
    return folder


@pytest.fixture
def labelled(_trained_on_labels, tmp_path):
    """A finished run of a conditional model of images."""
    return shutil.copytree(_trained_on_labels, tmp_path / "labelled")


def files(folder):
    """{relative path: content}: what must not change when something fails."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def bytes_of():
    return files


@pytest.fixture(scope="session")
def steps_of():
    """workdir -> the steps in its metrics, in order."""
    return lambda folder: [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def same_weights():
    """Check that the newest checkpoints of two runs are of the same step, with the same bytes in every file."""

    def check(one, other):
        newest = [max((folder / "checkpoints").glob("step_*")) for folder in (one, other)]
        assert newest[0].name == newest[1].name
        contents = [files(folder) for folder in newest]
        parts = ("ema.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
        assert tuple(sorted(contents[0])) == parts
        assert contents[0] == contents[1]

    return check


LAUNCHER = """
import gc, json, os, sys
sys.modules["triton"] = None  # it complains of what is frozen
import torch._dynamo, torch.distributed.fsdp, torch.utils.flop_counter, torch.utils.tensorboard, torchdiffeq  # later
import run_lib
gc.freeze()  # else each run would copy all of this in its end
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(0)
        os.environ.update(job["env"])
        exec(job["before"])
        sys.argv = ["run_lib.py", *job["argv"]]
        run_lib.cli()
    print(pid, flush=True)
"""
"""A process that has imported everything, and forks one that runs the command line for each line of its input."""


class Launcher:
    """Starts ``run_lib.py`` as a process, without the seconds that its imports take."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def _ask(self, **job):
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, log, *arguments, before="", **env):
        """Its process id; what it prints goes to the file ``log``, and ``env`` into its environment.

        ``before`` is code that the process runs first.
        """
        return self._ask(log=str(log), argv=[str(argument) for argument in arguments], before=before, env=env)

    def start_together(self, logs, *arguments, **options):
        """As many processes as logs, that find each other; their ids."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {"WORLD_SIZE": str(len(logs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [self.start(log, *arguments, RANK=str(rank), **env, **options) for rank, log in enumerate(logs)]

    def wait(self, pid):
        """Its exit status; that of a signal is negative."""
        return self._ask(wait=pid)

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def state(pid):
    """A letter: T for a process that is stopped, Z (zombie) for one that has ended and is not waited for."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def alive(pid):
    """Whether the process runs."""
    return state(pid) != "Z"


@pytest.fixture(scope="session")
def launcher():
    launcher = Launcher()
    yield launcher
    launcher.close()
