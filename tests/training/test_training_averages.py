"""Several averages at once, and the snapshots of those by power functions."""

import json

import pytest
import torch

from models import EMA, PowerEMA
from training import CheckpointError, DivergenceError, TrainState, load_checkpoint
from training.checkpoint import write_files

MAKERS = {
    "ema": lambda model: EMA(model, 0.9),
    "ema_0.1": lambda model: EMA(model, 0.1),
    "ema_power_0.05": lambda model: PowerEMA(model, 0.05),
    "ema_power_0.2": lambda model: PowerEMA(model, 0.2),
}
POWERS = {"ema_power_0.05", "ema_power_0.2"}


@pytest.fixture
def state_with(fresh_state):
    """(names of averages, the first of which is sampled) -> function of the seed of the weights -> state."""

    def with_names(*names):
        def make(init=0):
            state = fresh_state(init)
            ema, *others = (MAKERS[name](state.model) for name in names)
            return TrainState(state.model, state.optimizer, ema, dict(zip(names[1:], others, strict=True)))

        return make

    return with_names


@pytest.fixture
def whole(new_run, state_with):
    """Eight steps with all averages, the checkpoint of every step, and snapshots of every second."""
    run = new_run("whole", make_state=state_with(*MAKERS), options={"dequantize": True, "snapshot_every": 2})
    run.train(checkpoint_every=1)
    return run


def test_each_of_several_is_what_it_is_alone(whole, new_run, state_with):
    tensors, values = whole.tensors()
    assert set(tensors) == {"model", "optimizer", *MAKERS}
    for name in MAKERS:
        alone = new_run(name, make_state=state_with(name), options={"dequantize": True})
        alone.train()
        found, of_one = alone.tensors()
        assert set(found) == {"model", "optimizer", "ema"}
        assert of_one == values
        assert all(torch.equal(value, tensors[name][key]) for key, value in found["ema"].items())
        assert all(torch.equal(value, tensors["model"][key]) for key, value in found["model"].items())
    different = [torch.stack([tensors[name][key].flatten()[0] for name in MAKERS]) for key in tensors["ema"]]
    assert all(len(values.unique()) == len(MAKERS) for values in different)


def test_snapshots_hold_the_averages_by_power_functions_of_their_step(whole):
    assert [path.name for path in whole.snapshots.list()] == [f"step_{n:08d}" for n in (2, 4, 6, 8)]
    for path in whole.snapshots.list():
        tensors, values = load_checkpoint(path)
        expected, of_step = load_checkpoint(whole.checkpoints.folder / path.name)
        assert values == of_step
        assert set(tensors) == POWERS
        for name in POWERS:
            assert tensors[name].keys() == expected[name].keys()
            assert all(torch.equal(value, expected[name][key]) for key, value in tensors[name].items())


@pytest.mark.parametrize("stop", [1, 2, 3, 6])
def test_resuming_is_exact(whole, new_run, bytes_of, stop):
    part = new_run("part", make_state=whole.make_state, options=whole.options)
    part.train(steps=stop)
    part.train(part.checkpoints.latest(), state=part.make_state(init=1))
    name = "step_00000008"
    assert bytes_of(part.checkpoints.folder / name) == bytes_of(whole.checkpoints.folder / name)
    assert bytes_of(part.snapshots.folder) == bytes_of(whole.snapshots.folder)


def test_snapshots_that_are_undone_are_removed(whole):
    whole.snapshots.remove_after(5)
    assert [path.name for path in whole.snapshots.list()] == ["step_00000002", "step_00000004"]
    whole.snapshots.remove_after(0)
    assert whole.snapshots.list() == []


def test_an_average_that_the_checkpoint_lacks_is_refused_and_one_too_many_is_left(whole, state_with, new_run):
    path = whole.checkpoints.latest()
    fewer = new_run("fewer", make_state=state_with("ema", "ema_0.1"))
    state, _ = fewer.train(path, steps=9)
    assert (state.step, state.averages["ema_0.1"].updates) == (9, 9)
    with pytest.raises(CheckpointError, match=r"has no average ema_power_0\.2, and averages can only begin with a run"):
        state_with("ema", "ema_0.1", "ema_power_0.2")().load(fewer.checkpoints.latest())


def test_averaged_weights_alone_are_nothing_to_train_on(whole, tmp_path):
    tensors, values = whole.tensors()
    path = tmp_path / "step_00000008_ema"
    write_files(path, {"ema": tensors["ema"]}, values)
    assert load_checkpoint(path)[1] == json.loads((path / "state.json").read_text())
    with pytest.raises(CheckpointError, match="holds averaged weights only; training goes on from one of RUN/checkp"):
        whole.make_state().load(path)


def test_no_snapshot_is_taken_of_what_is_not_finite(new_run, state_with):
    run = new_run("bad", make_state=state_with(*MAKERS), options={"snapshot_every": 1, "checkpoint_every": 3})
    original, calls = run.loss, []

    def loss(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) == 5 else 1)

    run.loss = loss
    with pytest.raises(DivergenceError, match="at step 5"):
        run.train()
    assert [path.name for path in run.snapshots.list()] == [f"step_{n:08d}" for n in (1, 2, 3, 4)]


def test_an_average_that_is_not_finite_is_seen(state_with):
    state = state_with(*MAKERS)()
    assert state.finite()
    with torch.no_grad():
        next(state.averages["ema_power_0.2"].model.parameters()).view(-1)[0] = float("inf")
    assert not state.finite()


def test_a_snapshot_that_cannot_be_written_ends_the_run_and_names_the_last_whole_one(whole):
    (whole.snapshots.folder / ".writing_step_00000010").write_text("in the way")
    told = r"the snapshot of averages of step 10 cannot be written to .*ema_snapshots .*is step_00000008"
    with pytest.raises(OSError, match=told):
        whole.train(whole.checkpoints.latest(), steps=12)
    assert whole.snapshots.latest().name == "step_00000008"
