"""The record of a run: each step once, whatever happened before."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from training import Metrics


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder, start, *steps):
    with Metrics(folder, start) as metrics:
        for step in steps:
            metrics.log(step, loss=step / 3, rate=float(start))


def test_each_record_is_a_line_at_once(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.log(10, loss=0.1 + 0.2, grad_norm=1e-30)
        assert lines(tmp_path) == [{"step": 10, "loss": 0.1 + 0.2, "grad_norm": 1e-30}]
        metrics.log(20, loss=5.0)
        assert [line["step"] for line in lines(tmp_path)] == [10, 20]


def test_resuming_removes_the_steps_that_are_done_again(tmp_path):
    write(tmp_path, 0, 10, 20, 30, 40)
    write(tmp_path, 25, 30, 40, 50)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 40, 50]
    assert [line["rate"] for line in lines(tmp_path)] == [0, 0, 25, 25, 25]
    write(tmp_path, 50)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 40, 50]
    write(tmp_path, 0, 1)
    assert [line["step"] for line in lines(tmp_path)] == [1]
    assert not list(tmp_path.glob("*.writing"))


@pytest.mark.parametrize("rest", ['{"step": 3', '{"st', "\0\0\0", "[]", "5", '{"loss": 1.0}', ""])
def test_a_line_that_a_crash_cut_off_is_removed(tmp_path, rest):
    write(tmp_path, 0, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(rest)
    write(tmp_path, 2, 3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_tensorboard_shows_the_same_numbers_and_the_picture(tmp_path, monkeypatch):
    # Files of one second and process sort by a count as text ("100" before "99"), so that it must begin low.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write(tmp_path, 0, 10, 20, 30)
    with Metrics(tmp_path, 15) as metrics:
        metrics.log(20, loss=9.0)
        metrics.picture(20, "samples", pixels)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(10, pytest.approx(10 / 3)), (20, 9.0)]
    (image,) = board.Images("samples")
    assert (image.step, image.width, image.height) == (20, 7, 5)


def test_files_are_closed_when_an_error_leaves_the_context(tmp_path):
    metrics = Metrics(tmp_path)
    with pytest.raises(KeyError), metrics:
        raise KeyError
    with pytest.raises(ValueError, match="closed file"):
        metrics.log(1, loss=0.0)
