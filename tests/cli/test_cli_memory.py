"""Memory on the command line: what is told before a run, sizes left to it, and what is told when memory runs out."""

import json
import re
from pathlib import Path

import pytest
from command_line import needs_proc

from models import ScoreModel
from modes import memory

WIDE = [
    "--config.model.width=256",
    "--config.model.blocks=3",
    "--config.data.size=20000",
    "--config.training.batch_size=16384",
    "--config.training.steps=2",
]
"""Few samples that need much, for each has random numbers of its own, which take time."""
SMALL = "--config.training.batch_size=8"
LIMIT = """
import resource
taken = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize:"))) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + {} * 2**20,) * 2)
"""
"""A limit on the address space, above what the process has taken by now."""


@pytest.fixture
def limited(launcher, tmp_path):
    """Run the command line with so many MiB beyond what the imports take; returns status and output."""

    def run(room, *arguments):
        log = tmp_path / "log"
        return launcher.wait(launcher.start(log, *arguments, before=LIMIT.format(room))), log.read_text()

    return run


def stored_sizes(folder):
    config = json.loads((Path(folder) / "config.json").read_text())["training"]
    return config["batch_size"], config["accumulation"]


def planned_sizes(cli, *train):
    """The same of what a training would store."""
    out = cli(*train, "--dry_run").good()
    config = json.loads(out[: out.index("\n}\n") + 2])["training"]
    return config["batch_size"], config["accumulation"]


def fault(outcome):
    """The one line of an error; its flags that would fit, each list of them for itself."""
    status, log = outcome
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert status == 1
    assert "Traceback" not in log
    return line, [re.findall(r"--config\S+=\w+", way) for way in line.partition("What fits:")[2].split("; or ")]


@needs_proc
def test_training_that_runs_out_says_what_fits_and_that_fits(limited, tiny, tmp_path):
    train = ["--mode=train", *tiny, *WIDE]
    outcome = limited(660, *train, f"--workdir={tmp_path / 'run'}")
    line, ways = fault(outcome)
    assert "memory ran out in step 1 of training, with 16384 samples in 1 part(s), 16384 at once: the estimate" in line
    assert re.search(r"note: that may be too much\. What fits: --config\.training\.accumulation=", outcome[1])
    assert [way[0].partition("=")[0] for way in ways] == [
        "--config.training.accumulation",
        "--config.training.checkpointing",
        "--config.training.batch_size",
    ]
    for number, way in enumerate(ways):
        status, log = limited(660, *train, f"--workdir={tmp_path / str(number)}", *way)
        assert (status, "step 2/2: loss" in log) == (0, True), (way, log)


@needs_proc
@pytest.mark.parametrize(
    ("mode", "section", "count", "size"),
    [
        ("sample", "sampling", 62_500, ["--config.model.width=512", "--config.model.blocks=1"]),
        ("likelihood", "likelihood", 50_000, ["--config.model.width=512", "--config.data.size=50000"]),
    ],
    ids=["sample", "likelihood"],
)
def test_a_pass_that_runs_out_says_what_fits_and_that_fits(limited, cli, tiny, tmp_path, mode, section, count, size):
    folder = tmp_path / "run"
    cli("--mode=train", *tiny, *WIDE, SMALL, *size, f"--workdir={folder}").good()
    asked = [f"--mode={mode}", f"--workdir={folder}", f"--config.{section}.num_images={count}"]
    asked += ["--config.sampling.steps=1", "--config.sampling.trajectory=0", "--config.sampling.denoise=False"]
    asked += ["--config.likelihood.split=train", f"--config.{section}.batch_size={count}"]
    asked += ["--config.likelihood.method=euler", "--config.likelihood.steps=1"]
    line, ways = fault(limited(660, *asked))
    assert f"memory ran out in {section}, with {count} samples at once: the estimate was about" in line
    assert [way[0].partition("=")[0] for way in ways] == [f"--config.{section}.batch_size"]
    status, log = limited(660, *asked, *ways[0])
    assert status == 0, log


@pytest.fixture
def exhausted(monkeypatch):
    """Let a network run out of memory at every batch of more than so many samples, as PyTorch tells it on a CPU."""

    def limit(most):
        forward = ScoreModel.eps

        def eps(self, x, t, *others, **more):
            if len(x) > most:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
            return forward(self, x, t, *others, **more)

        monkeypatch.setattr(ScoreModel, "eps", eps)

    return limit


@pytest.mark.parametrize(
    ("mode", "flags", "told", "setting"),
    [
        (
            "interpolate",
            ["--config.interpolation.moments=5"],
            "in interpolation, with 10 samples",
            "interpolation.pairs",
        ),
        ("edit", ["--image=1", "--mask=top"], "in editing, with 6 samples at once", "sampling.batch_size"),
        ("dequantizer", [], "in training of the dequantiser, with 4 samples", "dequantizer.batch_size"),
        (
            "train",
            ["--config.training.steps=5", "--config.training.heldout_every=1", "--config.training.batch_size=2"],
            "in the loss on held-out data, with 100 samples at once",
            "likelihood.batch_size",
        ),
    ],
)
def test_the_work_in_which_memory_runs_out_is_told_with_its_own_setting(
    cli, digits, exhausted, mode, flags, told, setting
):
    exhausted(3)
    fault = cli(f"--mode={mode}", f"--workdir={digits}", *flags).fault()
    assert f"memory ran out {told}" in fault
    assert re.search(rf"What fits: --config\.{setting}=[123] \(about|What fits: --config\.{setting}=\d+ ", fault)


@pytest.fixture
def with_memory(monkeypatch):
    """Let the device have so many MiB for what the estimate counts."""

    def give(mebibytes):
        monkeypatch.setattr(memory, "RESERVE", 0)
        monkeypatch.setattr(memory, "free_memory", lambda device: mebibytes and int(mebibytes * 2**20))

    return give


def test_a_batch_left_open_is_the_largest_power_of_two_that_fits(cli, tiny, with_memory):
    train = ["--mode=train", *tiny, *WIDE, "--config.training.batch_size=auto", "--config.training.steps=1"]
    with_memory(100_000)
    assert planned_sizes(cli, *train, "--workdir=much") == (16384, 1)  # of 20000 points
    with_memory(60)
    out = cli(*train, "--workdir=little").good()
    size, parts = stored_sizes("little")
    assert (size & (size - 1), parts) == (0, 1)
    assert f"1 steps of {size}, " in out
    needed = {n: told(cli, tiny, f"--config.training.batch_size={n}") for n in (size, 2 * size)}
    assert needed[size] <= 0.5 * 60 + 1
    assert needed[2 * size] >= 0.5 * 60 - 1


def told(cli, tiny, *sizes):
    """MiB of the estimate."""
    out = cli("--mode=train", "--dry_run", *tiny, *WIDE, *sizes).good()
    return int(re.search(r"memory: about (\d+) MiB", out)[1])


def test_a_run_keeps_the_batch_that_it_found(cli, tiny, with_memory):
    train = ["--mode=train", "--workdir=run", *tiny, *WIDE, "--config.training.batch_size=auto"]
    with_memory(40)
    cli(*train, "--config.training.steps=1").good()
    size, _ = stored_sizes("run")
    with_memory(100_000)
    for again in (train, ["--mode=train", "--workdir=run"]):
        out = cli(*again, "--config.training.steps=2").good()
        assert stored_sizes("run") == (size, 1)
        assert "training.batch_size" not in out


def test_a_run_keeps_the_parts_that_it_found_while_they_fit(cli, tiny, with_memory):
    """They are rounding in what is learned; where they are found anew, that is told."""
    train = ["--mode=train", "--workdir=run", *tiny, *WIDE, "--config.training.batch_size=3000"]
    train.append("--config.training.accumulation=auto")
    with_memory(80)
    cli(*train, "--config.training.steps=1").good()
    batch, parts = stored_sizes("run")
    with_memory(100_000)
    out = cli(*train, "--config.training.steps=2").good()
    assert (stored_sizes("run"), "training.accumulation" in out) == ((batch, parts), False)
    with_memory(60)
    out = cli(*train, "--config.training.steps=3").good()
    assert stored_sizes("run")[0] == batch
    more = stored_sizes("run")[1]
    assert more > parts
    assert f"changed since this run began: training.accumulation: {parts} -> {more}\n" in out


def test_what_is_done_between_steps_is_told_where_it_does_not_fit(cli, tiny, with_memory):
    train = ["--mode=train", "--dry_run", *tiny, *WIDE, "--config.training.batch_size=100"]
    beside = ["--config.training.sample_every=1", "--config.sampling.num_images=20000"]
    beside += ["--config.sampling.batch_size=20000", "--config.training.heldout_images=10"]
    with_memory(100_000)
    assert "note:" not in cli(*train, *beside).good()
    with_memory(40)
    (note,) = re.findall("^note: .*", cli(*train, *beside).good(), re.MULTILINE)
    found = re.match(r"note: sampling may be too much beside that: 20000 samples at once make it (\d+) MiB\. ", note)
    size = int(re.search(r"What fits: --config\.sampling\.batch_size=(\d+) \(about", note)[1])
    assert int(found[1]) > 10
    assert "note:" not in cli(*train, *beside, f"--config.sampling.batch_size={size}").good()
    assert "note: sampling" in cli(*train, *beside, f"--config.sampling.batch_size={2 * size}").good()


def test_a_batch_left_open_leaves_room_for_what_is_done_beside_a_graph(cli, tiny, with_memory, monkeypatch):
    train = ["--mode=train", *tiny, *WIDE, "--config.training.batch_size=auto", "--config.training.steps=1"]
    train += ["--config.training.sample_every=1", "--config.sampling.batch_size=2048"]
    train += ["--config.sampling.num_images=2048", "--config.training.heldout_every=0"]
    with_memory(60)
    apart, _ = planned_sizes(cli, *train)
    monkeypatch.setattr(memory, "keeps_activations", lambda run: True)
    assert planned_sizes(cli, *train)[0] < apart


def test_parts_left_open_are_as_few_as_fit(cli, tiny, with_memory):
    train = ["--mode=train", *tiny, *WIDE, "--config.training.batch_size=15000", "--config.training.accumulation=auto"]
    with_memory(100_000)
    assert planned_sizes(cli, *train) == (15000, 1)
    with_memory(100)
    batch, parts = planned_sizes(cli, *train)
    assert (batch, parts > 2) == (15000, True)
    fewer = max(n for n in range(1, parts) if 15000 % n == 0)
    needed = {n: told(cli, tiny, f"--config.training.batch_size={15000 // n}") for n in (fewer, parts)}
    assert needed[parts] <= 0.5 * 100 + 1
    assert needed[fewer] >= 0.5 * 100 - 1


def test_with_both_left_open_the_batch_is_not_cut(cli, tiny, with_memory):
    with_memory(60)
    both = ["--config.training.batch_size=auto", "--config.training.accumulation=auto"]
    assert planned_sizes(cli, "--mode=train", *tiny, *WIDE, *both)[1] == 1


def test_the_word_in_a_recipe(cli, tiny, bytes_of, with_memory):
    Path("mine.py").write_text(
        "from configs import toy2d\ndef get_config():\n    c = toy2d.get_config()\n"
        "    c.training.batch_size = 'auto'\n    c.training.accumulation = 2\n    return c\n"
    )
    rest = [flag for flag in tiny if "--config=" not in flag and "batch_size=8" not in flag]
    with_memory(100_000)
    out = cli("--mode=train", "--dry_run", "--config=mine.py", *rest).good()
    assert '"batch_size": 64' in out  # of 100 points, in two parts
    assert '"accumulation": 2' in out


def test_nothing_fits(cli, tiny, with_memory):
    train = ["--mode=train", "--workdir=run", *tiny, *WIDE]
    with_memory(0.1)
    for size in ("batch_size", "accumulation"):
        message = cli(*train, f"--config.training.{size}=auto").fault()
        assert "auto finds no size that fits: one sample at a time needs about" in message
    out = cli(*train, "--dry_run").good()
    assert "note: that may be too much. Nothing fits: one sample at a time needs about" in out
    assert not Path("run").exists()


def test_a_system_that_does_not_tell(cli, tiny, with_memory):
    train = ["--mode=train", "--workdir=run", "--dry_run", *tiny, *WIDE]
    with_memory(None)
    assert re.search(r"samples in float32$", cli(*train).good(), re.MULTILINE)
    message = cli(*train, "--config.training.batch_size=auto").fault()
    assert "this system does not tell how much memory cpu has; give a number for auto" in message
