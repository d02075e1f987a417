"""Processes that are killed, interrupted, and started in hostile places."""

import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags
from command_line import alive, needs_proc
from safetensors.torch import load_file

import run_lib

ROOT = Path(run_lib.__file__).parent
ENDLESS = "--config.training.steps=1000000"


def wait_for(condition, process_alive):
    """Poll until the condition holds; the process must not end before."""
    while not condition():
        assert process_alive()
        time.sleep(0.0005)


def newest_step(folder):
    steps = [int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*")]
    return max(steps, default=0)


@needs_proc
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bits(
    tmp_path, launcher, cli, tiny, steps_of, same_weights
):
    """SIGKILL while stepping, and while a checkpoint is being written (every step writes one)."""
    rng = random.Random(0)
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--mode=train", f"--workdir={run}", *tiny, "--config.training.checkpoint_every=1"]
    for kill in range(4):
        goal = newest_step(run) + 3
        pid = launcher.start(log, *arguments, ENDLESS)
        wait_for(lambda goal=goal: newest_step(run) >= goal, lambda pid=pid: alive(pid))
        if kill % 2:
            wait_for(lambda: any(run.glob("checkpoints/.writing_*/*")), lambda pid=pid: alive(pid))
        else:
            time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert launcher.wait(pid) == -signal.SIGKILL
        assert "Traceback" not in log.read_text()
    steps = newest_step(run) + 3
    cli(*arguments, f"--config.training.steps={steps}").good()
    assert steps_of(run) == list(range(1, steps + 1))
    assert not list(run.glob("checkpoints/.*"))
    assert not list(run.glob("*.writing"))
    whole = tmp_path / "whole"
    cli("--mode=train", f"--workdir={whole}", *tiny, f"--config.training.steps={steps}").good()
    same_weights(run, whole)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_names_the_command_that_goes_on(
    tmp_path, launcher, cli, tiny, steps_of, same_weights, number
):
    run, log = tmp_path / "run with a space", tmp_path / "log"
    pid = launcher.start(
        log, "--mode=train", f"--workdir={run}", *tiny, ENDLESS, "--config.training.checkpoint_every=9999"
    )
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(steps_of(run)) > 3, lambda: alive(pid))
    os.kill(pid, number)
    assert launcher.wait(pid) == 0
    text = log.read_text()
    done = newest_step(run)
    assert done == steps_of(run)[-1] > 3
    assert f"stopped by {number.name} after step {done} of 1000000; all is saved. To go on: python run_lib.py " in text
    again = shlex.split(text.splitlines()[-2].partition("To go on: python run_lib.py ")[2])
    assert cli(*again, f"--config.training.steps={done + 3}").good().startswith(f"continuing {run} from step {done}\n")
    assert steps_of(run) == list(range(1, done + 4))
    whole = tmp_path / "whole"
    cli("--mode=train", f"--workdir={whole}", *tiny, f"--config.training.steps={done + 3}").good()
    same_weights(run, whole)


@pytest.fixture
def hostile(tmp_path):
    """A folder with packages of our names that must not be imported."""
    for name in ("models", "data", "configs", "training", "sde_lib"):
        package = tmp_path / "hostile" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise RuntimeError('the wrong {name}')")
    return tmp_path / "hostile"


def test_our_own_modules_are_used_wherever_it_is_started(hostile, tiny):
    """As the script and as a module, with another project's packages in the working folder."""
    script = subprocess.run(
        [sys.executable, ROOT / "run_lib.py", "--mode=train", "--workdir=run", *tiny],
        cwd=hostile,
        capture_output=True,
        text=True,
    )
    assert (script.returncode, script.stderr) == (0, "")
    assert (hostile / "run" / "config.json").exists()
    path = sorted((hostile / "run" / "checkpoints").iterdir())[-1]
    assert all(value.isfinite().all() for value in load_file(path / "ema.safetensors").values())
    assert f"python {ROOT / 'run_lib.py'} --mode=sample --workdir=run" in script.stdout  # it can be typed right there


def test_help_names_every_flag(hostile):
    shown = subprocess.run([sys.executable, ROOT / "run_lib.py", "--help"], cwd=hostile, capture_output=True, text=True)
    assert shown.stderr == ""
    assert "python run_lib.py --mode=train" in shown.stdout  # the examples of the docstring
    own = [name for name, flag in flags.FLAGS.flags_by_module_dict().items() if name == "run_lib"]
    assert own
    for flag in flags.FLAGS.flags_by_module_dict()["run_lib"]:
        if "." not in flag.name:
            name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
            assert f"{name}:" in shown.stdout
            assert " ".join(flag.help.split())[:40] in " ".join(shown.stdout.split())
    assert not any(hostile.glob("runs"))


@needs_proc
def test_two_runs_in_one_folder_are_refused_and_a_dead_one_is_no_hindrance(tmp_path, launcher, cli, tiny, steps_of):
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--mode=train", f"--workdir={run}", *tiny]
    pid = launcher.start(log, *arguments, ENDLESS, "--config.training.checkpoint_every=1")
    wait_for(lambda: newest_step(run) > 0, lambda: alive(pid))
    fault = cli(*arguments).fault()
    assert fault.startswith(f"{run} is in use already (by process {pid} on ")
    assert "wait for it to end, stop it, or use another --workdir" in fault
    before = newest_step(run)
    wait_for(lambda: newest_step(run) > before, lambda: alive(pid))  # it goes on undisturbed
    os.kill(pid, signal.SIGKILL)
    launcher.wait(pid)
    steps = newest_step(run) + 2
    cli(*arguments, f"--config.training.steps={steps}").good()
    assert steps_of(run) == list(range(1, steps + 1))


@needs_proc
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_to_the_same_bits(
    tmp_path, launcher, cli, tiny, trained, same_weights
):
    """No file may grow as large any more as the largest of a checkpoint; the log is smaller."""
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--mode=train", f"--workdir={run}", *tiny, "--config.training.checkpoint_every=1"]
    pid = launcher.start(log, *arguments, ENDLESS)
    wait_for(lambda: newest_step(run) > 2, lambda: alive(pid))
    largest = max(path.stat().st_size for path in trained.glob("checkpoints/step_*/*"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest - 1, largest - 1))
    assert launcher.wait(pid) == 1
    fault = log.read_text().splitlines()[-1]
    assert fault.startswith("error: ")
    assert "File too large" in fault
    newest = max((run / "checkpoints").glob("step_*")).name
    assert f"cannot be written to {run}/checkpoints" in fault
    assert f"the last whole one is {newest}. Make room, or allow writing there, and start again" in fault
    assert "Traceback" not in log.read_text()
    assert [path.name.startswith("step_") for path in (run / "checkpoints").glob("[!.]*")] == [True, True]
    steps = newest_step(run) + 2
    cli(*arguments, f"--config.training.steps={steps}").good()
    assert not list((run / "checkpoints").glob(".*"))
    whole = tmp_path / "whole"
    cli("--mode=train", f"--workdir={whole}", *tiny, f"--config.training.steps={steps}").good()
    same_weights(run, whole)
