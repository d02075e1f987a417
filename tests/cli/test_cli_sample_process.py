"""Samples that several processes share, or that are killed half way: the files of one process in one go, to the bit."""

import os
import shutil
import signal
import time

import pytest
from command_line import alive, needs_proc

from modes import sample

SAMPLING = [
    "--mode=sample",
    "--config.sampling.num_images=7",
    "--config.sampling.batch_size=2",
    "--config.sampling.trajectory=2",
]


@pytest.fixture
def whole(cli, tmp_path, bytes_of):
    """(run, arguments) -> the files of samples that one process makes in one go."""

    def make(run, *arguments):
        folder = shutil.copytree(run, tmp_path / "whole")
        cli(*SAMPLING, f"--workdir={folder}", *arguments).good()
        files = bytes_of(folder / "samples")
        for name, content in files.items():
            if name.endswith(".json"):
                files[name] = content.replace(str(folder).encode(), str(run).encode())
        return files

    return make


@pytest.mark.parametrize(
    ("count", "flags"),
    [
        (2, ["--sampler=dpmpp_sde", "--config.sampling.steps=3", "--config.model.conditional=True"]),
        (3, ["--sampler=ode", "--config.sampling.rtol=0.1", "--config.sampling.atol=0.1"]),  # its steps are the batch's
    ],
)
def test_two_and_three_processes_write_the_files_of_one(launcher, whole, tmp_path, bytes_of, request, count, flags):
    run = request.getfixturevalue("labelled" if "--config.model.conditional=True" in flags else "digits")
    shutil.rmtree(run / "samples")
    expected = whole(run, *flags)
    logs = [tmp_path / f"{rank}.log" for rank in range(count)]
    env = {"WORLD_SIZE": str(count)}
    pids = [
        launcher.start(log, *SAMPLING, f"--workdir={run}", *flags, RANK=str(r), **env) for r, log in enumerate(logs)
    ]
    assert [launcher.wait(pid) for pid in pids] == [0] * count, [log.read_text() for log in logs]
    assert {name.rpartition(".")[2] for name in expected} == {"png", "npz", "json", "gif"}
    assert bytes_of(run / "samples") == expected
    assert logs[0].read_text().count("7 samples by") == 1
    assert all(log.read_text() == "" for log in logs[1:])


@pytest.fixture
def drawn(monkeypatch):
    """Indices of the first samples of the batches that are drawn; the first batch in ``drawn.fails`` cannot be."""

    class Drawn(list):
        fails = ()

    record, generate = Drawn(), sample.generate

    def recording(*arguments, first, **options):
        if first in record.fails:
            raise RuntimeError("the power is gone")
        record.append(first)
        return generate(*arguments, first=first, **options)

    monkeypatch.setattr(sample, "generate", recording)
    return record


def test_samples_that_fail_half_way_go_on(cli, digits, whole, bytes_of, drawn):
    """What is drawn is not drawn again, but for the first batch where its way is to be shown."""
    shutil.rmtree(digits / "samples")
    expected = whole(digits)
    drawn.clear()
    drawn.fails = (4,)
    assert "the power is gone" in cli(*SAMPLING, f"--workdir={digits}").fault()
    (folder,) = (digits / "samples").iterdir()
    assert folder.name.startswith(".step_00000004_deis_")
    assert len(list(folder.iterdir())) == 2
    drawn.fails = ()
    other = shutil.copytree(digits, digits.with_name("other"))
    changes = {
        "seed=1": [0, 2, 4, 6],
        "denoise=False": [0, 2, 4, 6],
        "batch_size=3": [0, 3, 6],
        "num_images=5": [0, 2, 4],
    }
    for change, batches in changes.items():  # nothing is taken over
        drawn.clear()
        cli(*SAMPLING, f"--workdir={other}", f"--config.sampling.{change}").good()
        assert drawn == batches
    drawn.clear()
    cli(*SAMPLING, f"--workdir={other}", "--config.sampling.trajectory=0").good()
    assert drawn == [4, 6]
    drawn.clear()
    out = cli(*SAMPLING, f"--workdir={digits}").good()
    assert "4 of 7 samples were done by an earlier run; going on from there" in out
    assert drawn == [0, 4, 6]
    assert bytes_of(digits / "samples") == expected


@needs_proc
def test_killed_samples_go_on(launcher, cli, digits, whole, tmp_path, bytes_of):
    shutil.rmtree(digits / "samples")
    expected, log = whole(digits), tmp_path / "log"
    pid = launcher.start(log, *SAMPLING, f"--workdir={digits}")
    while not list((digits / "samples").glob(".*/[!.]*.npz")):
        assert alive(pid), log.read_text()
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    assert launcher.wait(pid) == -signal.SIGKILL
    assert not list((digits / "samples").glob("*.json"))
    assert "samples were done by an earlier run" in cli(*SAMPLING, f"--workdir={digits}").good()
    assert bytes_of(digits / "samples") == expected


def test_each_process_draws_its_share(cli, digits, monkeypatch, drawn):
    """Three of them one after the other, the one that writes last."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in ("1", "2", "0"):
        monkeypatch.setenv("RANK", rank)
        assert cli(*SAMPLING, f"--workdir={digits}").good().count("7 samples by") == (rank == "0")
    assert drawn == [2, 4, 0, 6]


def test_one_batch_is_drawn_by_the_first(cli, digits, monkeypatch, drawn):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, expected in (("1", []), ("0", [0])):
        monkeypatch.setenv("RANK", rank)
        cli(*SAMPLING, f"--workdir={digits}", "--config.sampling.batch_size=7").good()
        assert drawn == expected
    assert not list((digits / "samples").glob(".*"))
