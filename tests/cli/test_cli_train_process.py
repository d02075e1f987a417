"""Training shared by several processes: the run of one, whatever happens to them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch.distributed import TCPStore

import run_lib
from modes import memory

ROOT = Path(run_lib.__file__).parent
SHARED = [
    "--mode=train",
    "--config.model.dropout=0.0",  # each process draws its own
    "--config.model.conditional=True",
    "--config.training.label_dropout=0.5",
    "--config.data.augment=0.5",
    "--config.training.accumulation=2",
    "--config.training.decay=none",
    "--config.training.checkpoint_every=1",
    "--config.training.log_every=1",
    "--config.training.heldout_every=2",
    "--config.training.heldout_images=30",  # which four cannot share evenly
    "--config.training.sample_every=6",
    "--config.sampling.num_images=5",
    "--config.sampling.batch_size=2",
]
FSDP = "--config.training.parallel=fsdp"
ONE_LEVEL = "--config.model.channel_mult=(1,)"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


@pytest.fixture
def start_together(launcher, tmp_path, tiny_digits):
    """Start processes of one run that find each other; returns their ids, and their logs."""

    def start(count, folder, *arguments, **options):
        logs = [tmp_path / f"{folder.name}-{rank}.log" for rank in range(count)]
        flags = [*tiny_digits, *SHARED, f"--workdir={folder}", *arguments]
        return launcher.start_together(logs, *flags, **options), logs

    return start


@pytest.fixture
def train_together(start_together, launcher):
    def train(count, folder, *arguments, **options):
        pids, logs = start_together(count, folder, *arguments, **options)
        assert [launcher.wait(pid) for pid in pids] == [0] * count, [log.read_text() for log in logs]
        return [log.read_text() for log in logs]

    return train


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    newest = max((folder / "checkpoints").glob("step_*"))
    return newest.name, load_file(newest / "ema.safetensors")


def same_run(one, other):
    """The same losses, gradients, weights, images and bits/dim, within the rounding of sums in another order."""
    for key in ("step", "loss", "grad_norm", "learning_rate"):
        curves = ([line[key] for line in metrics(folder)] for folder in (one, other))
        np.testing.assert_allclose(*curves, rtol=2e-4)
    heldout = [[line for line in metrics(folder) if "heldout_loss" in line] for folder in (one, other)]
    assert [line["step"] for line in heldout[0]] == [line["step"] for line in heldout[1]] == [2, 4, 6]
    for mine, theirs in zip(*heldout, strict=True):
        names = [name for name in mine if name.startswith("heldout_loss")]
        assert len(names) == 9
        np.testing.assert_allclose([mine[n] for n in names], [theirs[n] for n in names], rtol=1e-3)
    (step, first), (other_step, second) = weights(one), weights(other)
    assert step == other_step
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-3, atol=1e-5)
    batches = [next((folder / "samples").glob("step_00000006_*.npz")) for folder in (one, other)]
    images = [np.load(path)["samples"].astype(int) for path in batches]
    assert abs(images[0] - images[1]).max() <= 1
    pictures = [np.asarray(Image.open(folder / "samples/step_00000006.png")).astype(int) for folder in (one, other)]
    assert abs(pictures[0] - pictures[1]).max() <= 1
    reports = [next((folder / "likelihood").glob("*ode*.json")).read_text() for folder in (one, other)]
    np.testing.assert_allclose(*(json.loads(text)["values"] for text in reports), rtol=1e-3)


@pytest.fixture(scope="module")
def alone(cli, tiny_digits, tmp_path_factory):
    """Six steps by one process, to compare with."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    cli(*tiny_digits, *SHARED, f"--workdir={folder}", "--config.training.steps=6").good()
    return folder


@pytest.mark.parametrize(("count", "parallel"), [(2, "ddp"), (4, "ddp"), (2, "fsdp")])
def test_the_loss_curve_the_images_and_the_likelihood_are_those_of_one(
    train_together, alone, tmp_path, bytes_of, count, parallel
):
    flags = ["--config.training.steps=6", f"--config.training.parallel={parallel}"]
    logs = train_together(count, tmp_path / "shared", *flags)
    assert bytes_of(tmp_path / "shared" / "samples").keys() == bytes_of(alone / "samples").keys()
    same_run(tmp_path / "shared", alone)
    assert f"6 steps of 8, shared by {count} processes" in logs[0]
    assert all(log == "" for log in logs[1:])
    for mode in ("likelihood", "sample"):
        assert f" torchrun --nproc-per-node={count} run_lib.py --mode={mode} " in logs[0]


def test_the_averages_and_their_snapshots_are_those_of_one(train_together, cli, tiny_digits, tmp_path):
    flags = ["--config.training.averages=0.5,power:0.1", "--config.training.ema_snapshot_every=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    cli(*tiny_digits, *SHARED, *flags, f"--workdir={one}").good()
    train_together(2, two, *flags)
    files = [
        sorted(path.relative_to(folder) for path in folder.rglob("step_*/ema*.safetensors")) for folder in (one, two)
    ]
    assert files[0] == files[1]
    names = {str(path) for path in files[0]}
    assert {
        "checkpoints/step_00000004/ema_0.5.safetensors",
        "ema_snapshots/step_00000002/ema_power_0.1.safetensors",
    } <= names
    for file in files[0]:
        second = load_file(two / file)
        for name, value in load_file(one / file).items():
            np.testing.assert_allclose(second[name], value, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_of_two_is_taken_up_by_one_and_by_four(train_together, cli, tiny_digits, alone, tmp_path):
    folder = tmp_path / "shared"
    train_together(2, folder, "--config.training.steps=2")
    cli(*tiny_digits, *SHARED, f"--workdir={folder}", "--config.training.steps=4").good()
    train_together(4, folder, "--config.training.steps=6")
    for path in (folder / "samples").glob("*.npz"):
        path.unlink()
    for path in (folder / "likelihood").glob("step_0000000[24]*"):
        path.unlink()
    cli(*tiny_digits, "--mode=sample", f"--workdir={folder}", *SHARED[1:]).good()
    same_run(folder, alone)


def test_shares_of_two_are_taken_up_by_one_and_by_three(train_together, cli, tiny_digits, tmp_path):
    """The weights of each of two are half of them; those of three a third, and of one all."""
    folder, whole = tmp_path / "shared", tmp_path / "whole"
    flags = ["--config.training.batch_size=12", "--config.likelihood.num_images=1", ONE_LEVEL]
    cli(*tiny_digits, *SHARED, *flags, f"--workdir={whole}", "--config.training.steps=6").good()
    train_together(2, folder, *flags, FSDP, "--config.training.steps=2")
    cli(*tiny_digits, *SHARED, *flags, f"--workdir={folder}", "--config.training.steps=4").good()
    (log, *_) = train_together(3, folder, *flags, FSDP, "--config.training.steps=6")
    assert f"continuing {folder} from step 4\n" in log
    for path in (folder / "likelihood").glob("step_0000000[24]*"):
        path.unlink()
    same_run(folder, whole)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_blocks_that_are_computed_again_change_nothing(train_together, alone, tmp_path, parallel):
    flags = ["--config.training.steps=6", "--config.training.checkpointing=True"]
    train_together(2, tmp_path / "shared", *flags, f"--config.training.parallel={parallel}")
    same_run(tmp_path / "shared", alone)


def test_all_agree_on_the_size_that_fits_the_one_with_the_least_memory(
    train_together, cli, tiny_digits, tmp_path, monkeypatch
):
    flags = ["--config.training.batch_size=auto", "--config.training.steps=1", "--config.training.heldout_every=0"]
    little, much = 6, 4000

    def planned(room):
        """By a dry run, for two that both have so many MiB."""
        monkeypatch.setattr(memory, "RESERVE", 0)
        monkeypatch.setattr(memory, "free_memory", lambda device: room * 2**20)
        out = cli(*tiny_digits, *SHARED, *flags, ONE_LEVEL, f"--workdir={tmp_path / 'dry'}", "--dry_run").good()
        return json.loads(out[: out.index("\n}\n") + 2])["training"]["batch_size"]

    give = (
        "import os; from modes import memory; memory.RESERVE = 0; "
        f"memory.free_memory = lambda device: {(much, little)}[int(os.environ['RANK'])] * 2**20"
    )
    train_together(2, tmp_path / "run", *flags, ONE_LEVEL, before=give)
    found = json.loads((tmp_path / "run" / "config.json").read_text())["training"]["batch_size"]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert found == planned(little) < planned(much)


def test_a_signal_to_one_stops_all_after_the_same_step(start_together, launcher, tmp_path, steps_of):
    folder = tmp_path / "shared"
    pids, logs = start_together(2, folder, "--config.training.steps=1000000")
    while not (folder / "metrics.jsonl").exists() or len(steps_of(folder)) < 4:
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)
    assert [launcher.wait(pid) for pid in pids] == [0, 0], logs[1].read_text()
    step = steps_of(folder)[-1]
    assert f"stopped by SIGTERM after step {step} of 1000000; all is saved" in logs[0].read_text()
    assert weights(folder)[0] == f"step_{step:08d}"


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs /proc")
def test_torchrun_starts_all_again_when_one_dies(train_together, tiny_digits, tmp_path, steps_of, same_weights):
    folder, whole = tmp_path / "shared", tmp_path / "whole"
    steps = ["--config.training.steps=20", "--config.training.sample_every=0", "--config.training.heldout_every=0"]
    arguments = [*tiny_digits, *SHARED, f"--workdir={folder}", *steps]
    process = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node=2", "--max-restarts=1", str(ROOT / "run_lib.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (folder / "metrics.jsonl").exists() or len(steps_of(folder)) < 4:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    log, _ = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert "continuing" in log
    assert steps_of(folder) == list(range(1, 21))
    train_together(2, whole, *steps)
    same_weights(folder, whole)


def test_a_batch_that_cannot_be_shared(start_together, launcher, tmp_path):
    pids, logs = start_together(3, tmp_path / "shared")
    assert {launcher.wait(pid) for pid in pids} == {1}
    assert (
        "a batch of 8 cannot be shared by 3 processes in 2 equal parts each; use a multiple of 6" in logs[0].read_text()
    )


def test_a_mistake_of_all_is_printed_by_one_and_that_of_one_by_itself(launcher, tiny_digits, tmp_path):
    """The store is the one that torchrun gives, which is there before and after the processes are."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    env["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    logs = [tmp_path / f"{rank}.log" for rank in range(3)]
    flags = [*tiny_digits, "--mode=train", f"--workdir={tmp_path / 'run'}"]
    for attempt in ("0", "1"):
        pids = [
            launcher.start(log, *flags, f"--config.seed={seed}", RANK=rank, TORCHELASTIC_RESTART_COUNT=attempt, **env)
            for log, rank, seed in zip(logs, "012", ("x", "x", "y"), strict=True)
        ]
        assert [launcher.wait(pid) for pid in pids] == [2, 2, 2]
        told = [[line for line in log.read_text().splitlines() if line.startswith("error: ")] for log in logs]
        assert sorted(map(len, told[:2])) == [0, 1]
        assert "config.seed is 'x'" in (told[0] or told[1])[0]
        assert "config.seed is 'y'" in told[2][0]


def test_processes_that_torchrun_did_not_start(cli, tiny_digits, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    fault = cli(*tiny_digits, "--mode=train", f"--workdir={tmp_path / 'run'}").fault()
    assert "2 processes are to train together, but MASTER_ADDR, MASTER_PORT is not set; use torchrun" in fault
    assert not (tmp_path / "run").exists()
