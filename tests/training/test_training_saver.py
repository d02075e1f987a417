"""Checkpoints that are written in the background: what they hold, and what becomes of their errors."""

import threading

import pytest
import torch

from training import Checkpoints, load_checkpoint
from training.saver import Saver


class Held(Checkpoints):
    """Checkpoints whose writing waits until it is let go, and fails where it is told to."""

    def __init__(self, folder):
        super().__init__(folder, keep=10)
        self.go, self.begun, self.fails = threading.Event(), threading.Event(), False

    def save(self, *arguments):
        self.begun.set()
        assert self.go.wait(20)
        if self.fails:
            raise OSError("no space left")
        return super().save(*arguments)


@pytest.fixture
def held(tmp_path):
    return Held(tmp_path / "checkpoints")


def change(state):
    with torch.no_grad():
        for parameter in (*state.model.parameters(), *state.ema.model.parameters()):
            parameter.add_(1)
        for moments in state.optimizer.state.values():
            moments["exp_avg"].mul_(2)
    state.step += 1


@pytest.fixture
def state(fresh_state):
    state = fresh_state()
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.step = 7
    return state


def test_a_checkpoint_holds_what_was_when_it_began(held, state, tmp_path, same_bits):
    expected = load_checkpoint(state.save(Checkpoints(tmp_path / "now")))
    with Saver(held) as saver:
        saver.save(state)
        assert held.begun.wait(20)
        change(state)  # training does not wait
        assert held.latest() is None
        held.go.set()
    (path,) = held.list()
    assert path.name == "step_00000007"
    same_bits(load_checkpoint(path), expected)


def test_two_are_written_one_after_the_other(held, state):
    with Saver(held) as saver:
        saver.save(state)
        threading.Timer(0.2, held.go.set).start()
        change(state)
        saver.save(state)  # waits for the first
        assert held.list()[0].name == "step_00000007"
    assert [path.name for path in held.list()] == ["step_00000007", "step_00000008"]


def test_an_error_is_raised_at_the_next_save_or_at_the_end(held, state):
    held.go.set()
    held.fails = True
    with Saver(held) as saver:
        saver.save(state)
        change(state)
        with pytest.raises(OSError, match="no space left"):
            saver.save(state)
    saver = Saver(held)
    saver.save(state)
    with pytest.raises(OSError, match="no space left"):
        saver.__exit__(None, None, None)


def test_an_error_does_not_hide_another(held, state, capsys):
    held.go.set()
    held.fails = True

    def train():
        with Saver(held) as saver:
            saver.save(state)
            raise ValueError("bad data")

    with pytest.raises(ValueError, match="bad data"):
        train()
    assert "and writing failed too: no space left" in capsys.readouterr().out
