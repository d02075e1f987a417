"""Evaluations that are killed, and that several processes share."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
from command_line import alive, needs_proc

import run_lib
from evaluation import Parts
from evaluation import likelihood as evaluation

SCORING = ["--mode=likelihood", "--config.likelihood.batch_size=1", "--config.likelihood.num_images=4"]


def values(folder, estimate="ode"):
    (path,) = (folder / "likelihood").glob(f"*_{estimate}_*.json")
    return json.loads(path.read_text())["values"]


@pytest.fixture(scope="module")
def whole(cli, _trained_digits, tmp_path_factory):
    """The same run, scored in one go by all estimates."""
    folder = shutil.copytree(_trained_digits, tmp_path_factory.mktemp("whole") / "run")
    cli(*SCORING, f"--workdir={folder}", "--config.likelihood.estimate=all").good()
    return folder


def test_an_evaluation_that_fails_halfway_goes_on(cli, digits, whole, monkeypatch):
    """What is done is not done again, and the values are those of an evaluation in one go."""
    score, scored = evaluation._score, []

    def failing(estimator, raw, indices, *rest):
        if list(indices) == [2] and 2 not in scored:
            scored.append(2)
            raise RuntimeError("the power is gone")
        scored.extend(indices)
        return score(estimator, raw, indices, *rest)

    monkeypatch.setattr(evaluation, "_score", failing)
    assert "the power is gone" in cli(*SCORING, f"--workdir={digits}").fault()
    (folder,) = (digits / "likelihood").iterdir()
    assert folder.name.startswith(".step_00000004_test_ode_seed0_")
    assert len(list(folder.iterdir())) == 2
    # Of other settings, nothing is taken over; of fewer images, what is there.
    cli(*SCORING, f"--workdir={digits}", "--config.likelihood.seed=1").good()
    assert scored == [0, 1, 2, 0, 1, 2, 3]
    out = cli("--mode=likelihood", f"--workdir={digits}", "--config.likelihood.batch_size=1").good()
    assert "2 of 3 samples were scored by an earlier run" in out
    assert scored[7:] == [2]
    assert values(digits, "ode_seed0") == values(whole)[:3]
    assert not list((digits / "likelihood").glob(".*"))


def test_a_damaged_part_is_computed_again(cli, digits, whole, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    cli(*SCORING, f"--workdir={digits}").good()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    first, _ = sorted((digits / "likelihood").glob(".*/*.npz"))
    first.write_bytes(first.read_bytes()[:-20])
    cli(*SCORING, f"--workdir={digits}").good()
    assert values(digits) == values(whole)


@needs_proc
def test_a_killed_evaluation_goes_on(launcher, cli, digits, whole, tmp_path):
    log = tmp_path / "log"
    pid = launcher.start(log, *SCORING, f"--workdir={digits}")
    results = digits / "likelihood"
    while not list(results.glob(".*/[!.]*.npz")):
        assert alive(pid), log.read_text()
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    assert launcher.wait(pid) == -signal.SIGKILL
    assert not list(results.glob("*.json"))
    done = next(results.glob(".*/[!.]*.npz"))
    parts = Parts(done.parent)
    rows = parts.load()
    parts.remove()
    rows["log_prob"] += 64 * np.log(2)  # a mark: one bit/dim less
    parts.save(rows)
    cli(*SCORING, f"--workdir={digits}").good()
    change = np.array(values(digits)) - values(whole)
    assert change[rows["index"]] == pytest.approx(-1)
    assert set(np.delete(change, rows["index"])) == {0}


def test_two_processes_give_the_values_of_one_and_one_report(launcher, digits, whole, tmp_path):
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    arguments = [*SCORING, f"--workdir={digits}", "--config.likelihood.estimate=all", "--config.likelihood.codes=True"]
    pids = [launcher.start(logs[rank], *arguments, RANK=str(rank), WORLD_SIZE="2") for rank in (1, 0)]
    assert [launcher.wait(pid) for pid in pids] == [0, 0]
    assert logs[1].read_text() == ""
    assert [line.split(":")[0] for line in logs[0].read_text().splitlines()[1:]] == ["ode", "elbo", "ddpm", "report"]
    for name in ("ode", "elbo", "ddpm"):
        assert values(digits, name) == values(whole, name)
    assert len(list((digits / "likelihood").glob("*.npz"))) == 1
    assert not list((digits / "likelihood").glob(".*"))


@pytest.mark.parametrize("first", [0, 1])
def test_each_process_computes_its_share(cli, digits, whole, monkeypatch, first):
    """Three of them one after the other, the one that reports last."""
    score, scored = evaluation._score, []
    monkeypatch.setattr(
        evaluation, "_score", lambda e, raw, i, *rest: scored.append(list(i)) or score(e, raw, i, *rest)
    )
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in ("1", "2", "0")[first:]:
        monkeypatch.setenv("RANK", rank)
        if rank == "0" and first:
            monkeypatch.setenv("WORLD_SIZE", "1")  # a process that never came: one alone does what is left
        outcome = cli(*SCORING, f"--workdir={digits}")
        assert outcome.good().count("bits/dim") == (rank == "0")
    assert scored == ([[1], [2], [0], [3]] if first == 0 else [[2], [0], [1], [3]])
    assert values(digits) == values(whole)


@pytest.mark.parametrize("mode", [mode for mode in run_lib.MODES if mode not in run_lib.SHARED])
def test_other_modes_are_for_one_process(cli, digits, monkeypatch, bytes_of, mode):
    before = bytes_of(digits)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (
        cli(f"--mode={mode}", f"--workdir={digits}")
        .fault()
        .startswith(
            "several processes (torchrun) share the work of --mode=train, sample, likelihood and evaluate only; start "
            f"--mode={mode} once, without torchrun"
        )
    )
    assert bytes_of(digits) == before


@pytest.mark.parametrize(
    "env", [{"WORLD_SIZE": "two"}, {"RANK": ""}, {"RANK": "1"}, {"RANK": "-1", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "0"}]
)
def test_an_environment_that_makes_no_sense(cli, digits, monkeypatch, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    fault = cli("--mode=likelihood", f"--workdir={digits}").fault()
    assert fault.startswith("the environment has RANK=")
    assert "start with torchrun, or unset these variables" in fault


def test_a_number_of_processes_that_were_not_started(cli, digits, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    fault = cli("--mode=likelihood", f"--workdir={digits}").fault()
    assert "WORLD_SIZE is 2, but there is no RANK; start with torchrun, or unset WORLD_SIZE" in fault
