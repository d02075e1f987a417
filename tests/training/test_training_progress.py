"""What is told of a run: speeds by a clock that is known, held-out figures when they are due, bars and lines."""

import io
import json
import math
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import DivergenceError, Metrics, Processes
from training.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("training.progress.time", SimpleNamespace(monotonic=lambda: Clock.now))
    return Clock


@pytest.fixture
def make_progress(tmp_path, clock):
    with ExitStack() as opened:

        def make(start=0, steps=10, batch_size=32, **options):
            metrics = opened.enter_context(Metrics(tmp_path, start))
            defaults = {"device": "cpu", "together": Processes(), "metrics": metrics}
            return Progress(start, steps, batch_size, **{**defaults, **options})

        yield make


@pytest.fixture
def lines(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def do(progress, clock, steps, seconds, loss=0.5, norm=2.0):
    """Some steps that take some seconds each."""
    for step in steps:
        clock.now += seconds
        progress.add(step, torch.tensor(loss), torch.tensor(norm))


def test_a_record_has_means_speeds_and_the_time_to_go(make_progress, clock, lines):
    with make_progress(start=2, flops=lambda: 1000) as progress:
        do(progress, clock, [3, 4], 0.5, loss=1.0)
        do(progress, clock, [5, 6], 1.5, loss=2.0, norm=4.0)
        progress.record(6, 0.25)
        do(progress, clock, [7], 4.0, loss=7.0)
        progress.record(7, 0.125)
    first, second = lines()
    assert first == {
        "step": 6,
        "loss": 1.5,
        "grad_norm": 3.0,
        "learning_rate": 0.25,
        "images_per_second": 4 * 32 / 4,
        "flops_per_second": 32_000,
        "seconds_to_go": 4.0,  # 4 steps more, as many as have taken 4 s
    }
    assert (second["loss"], second["images_per_second"], second["flops_per_second"]) == (7, 8, 8000)
    assert second["seconds_to_go"] == pytest.approx(3 * 8 / 5)


def test_what_is_no_training_counts_in_the_time_to_go_and_in_no_speed(make_progress, clock, lines):
    with make_progress() as progress:
        do(progress, clock, [1, 2], 1.0)
        with progress.aside():
            clock.now += 6
        progress.record(2, 0.1)
    (line,) = lines()
    assert line["images_per_second"] == 32
    assert line["seconds_to_go"] == 8 / 2 * 8
    assert "flops_per_second" not in line  # that are not known


@pytest.mark.parametrize(("limit", "left"), [(0.0, 8.0), (1.0, 8.0), (5 / 60, 3.0), (1 / 60, 0.0)])
def test_the_time_limit_bounds_the_time_to_go(make_progress, clock, lines, limit, left):
    with make_progress(time_limit=limit) as progress:
        do(progress, clock, [1, 2], 1.0)
        progress.record(2, 0.1)
    assert lines()[0]["seconds_to_go"] == pytest.approx(left)


def test_without_a_terminal_a_line_tells_all(make_progress, clock, capsys):
    with make_progress(steps=1000, batch_size=3, flops=lambda: 2_500_000_000) as progress:
        do(progress, clock, [1, 2], 0.25, loss=0.123456)
        progress.record(2, 0.0002, {"heldout_loss": 0.2})
        do(progress, clock, [3], 0.001)
        progress.record(3, 0.0002)
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "step 2/1000: loss 0.1235, held-out 0.2000, grad norm 2, lr 0.0002, 12 samples/s, 30 GFLOP/s, 4 min 10 s to go"
    )
    assert second.startswith("step 3/1000: loss 0.5000, held-out 0.2000, grad norm 2, lr 0.0002, 3000 samples/s, 7")


def test_on_a_terminal_the_bar_tells_it(make_progress, clock, capsys, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with make_progress(flops=lambda: 1_000_000) as progress:
        do(progress, clock, [1, 2], 0.5)
        progress.record(2, 0.0002, {"heldout_loss": 0.2})
    assert capsys.readouterr().out == ""
    shown = terminal.getvalue().split("\r")[-1]
    assert "2/10 [" in shown
    assert "loss 0.5000, held-out 0.2000, grad norm 2, lr 0.0002, 64 samples/s, 64 MFLOP/s]" in shown


def test_of_several_processes_the_first_alone_tells(make_progress, clock, capsys):
    class Second(Processes):
        def mean(self, x):
            return x

    with make_progress(together=Second(1, 2), metrics=None) as progress:
        do(progress, clock, [1], 0.5)
        progress.record(1, 0.0002)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (44.6, "45 s"),
        (185, "3 min 5 s"),
        (180, "3 min"),
        (7830, "2 h 10 min"),
        (7230, "2 h"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds, text):
    assert duration(seconds) == text


# In the loop


def heldout(step):
    return {"heldout_loss": step / 10, "heldout_loss/log_snr_-10.0..-7.0": step / 100}


def test_held_out_figures_stand_in_the_record_of_their_step(new_run, tmp_path):
    run = new_run()
    run.train(steps=11, log_every=4, heldout_every=3, on_heldout=heldout, flops=lambda: 10)
    assert [line["step"] for line in run.metrics] == [3, 4, 6, 8, 9, 11]
    for line in run.metrics:
        expected = heldout(line["step"]) if line["step"] in (3, 6, 9, 11) else {}
        assert {name: value for name, value in line.items() if name.startswith("heldout")} == expected
        assert line["flops_per_second"] == pytest.approx(10 * line["images_per_second"])
        assert math.isfinite(line["seconds_to_go"])
    board = EventAccumulator(str(run.folder / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {name for line in run.metrics for name in line} - {"step"}
    for name in heldout(0):
        shown = {event.step: event.value for event in board.Scalars(name)}
        assert shown == pytest.approx({step: heldout(step)[name] for step in (3, 6, 9, 11)})


def test_looking_at_held_out_data_changes_no_bit_of_the_training(new_run, same_bits):
    def drawing(step):
        torch.randn(step)
        return heldout(step)

    plain, looking = new_run("plain"), new_run("looking")
    plain.train()
    looking.train(heldout_every=2, on_heldout=drawing)
    same_bits(plain.tensors(), looking.tensors())


@pytest.mark.parametrize("options", [{"heldout_every": 0, "on_heldout": heldout}, {"heldout_every": 3}])
def test_held_out_data_are_looked_at_only_if_asked_for(new_run, options):
    run = new_run()
    run.train(log_every=4, **options)
    assert [line["step"] for line in run.metrics] == [4, 8]
    assert not any(name.startswith("heldout") for line in run.metrics for name in line)


def test_a_network_that_has_diverged_is_not_shown_held_out_data(new_run):
    def loss(model, x0, y, draws):
        return sum(p.sum() for p in model.parameters()).expand(len(x0)) * math.nan

    run = new_run(loss=loss)
    with pytest.raises(DivergenceError, match="at step 1"):
        run.train(log_every=100, heldout_every=2, on_heldout=lambda step: pytest.fail("looked"))
