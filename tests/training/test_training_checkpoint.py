"""Checkpoints are whole or absent, whatever happens while they are written, and verified when they are read."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from training import CheckpointError, Checkpoints, load_checkpoint, load_weights
from training import checkpoint as module
from training.checkpoint import BestCheckpoint

TENSORS = {
    "model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5)},
    "ema": {"a": torch.ones(2, 3), "b": torch.tensor(-1.5)},
}
NAMES = ["ema.safetensors", "manifest.json", "model.safetensors", "state.json"]


def shifted(step):
    """Tensors that tell which step they are of."""
    return {name: {key: value + step for key, value in group.items()} for name, group in TENSORS.items()}


def step_in(path):
    """The step that a checkpoint's content is of, by all of it."""
    tensors, values = load_checkpoint(path)
    for name, group in shifted(values["step"]).items():
        assert all(torch.equal(tensors[name][key], value) for key, value in group.items())
    return values["step"]


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def save(checkpoints, step, content=None):
    return checkpoints.save(step, shifted(step if content is None else content), {"step": content or step})


def test_what_is_saved_comes_back(checkpoints):
    half = torch.arange(5, dtype=torch.bfloat16)
    strided = torch.arange(12).reshape(3, 4).t()
    path = checkpoints.save(7, {"x": {"half": half, "strided": strided}, "none": {}}, {"step": 7, "pi": 3.14159})
    tensors, values = load_checkpoint(path)
    assert path == checkpoints.latest()
    assert values == {"step": 7, "pi": 3.14159}
    assert torch.equal(tensors["x"]["half"], half)
    assert tensors["x"]["half"].dtype == torch.bfloat16
    assert torch.equal(tensors["x"]["strided"], strided)
    assert tensors["none"] == {}


def test_a_checkpoint_holds_tensors_and_text_and_no_pickle(checkpoints):
    path = save(checkpoints, 1)
    assert sorted(file.name for file in path.iterdir()) == NAMES
    json.loads((path / "state.json").read_text())
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(manifest) == [name for name in NAMES if name != "manifest.json"]
    for name in ("model", "ema"):  # the file is safetensors, for everyone
        assert torch.equal(load_file(path / f"{name}.safetensors")["a"], shifted(1)[name]["a"])


def test_the_order_is_that_of_numbers_and_the_newest_are_kept(checkpoints):
    for step in (99_999_999, 5, 100_000_000):
        save(checkpoints, step)
    assert [path.name for path in checkpoints.list()] == ["step_99999999", "step_100000000"]
    assert step_in(checkpoints.latest()) == 100_000_000


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_are_kept_as_asked_for(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(1, 6):
        save(checkpoints, step)
        assert [step_in(path) for path in checkpoints.list()] == list(range(1, step + 1))[-keep:]


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep is 0; at least the newest checkpoint must be kept"):
        Checkpoints(tmp_path, 0)


def test_a_folder_without_checkpoints(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "step_12").mkdir()
    (tmp_path / ".writing_step_00000003").mkdir()
    for folder in (tmp_path, tmp_path / "absent"):
        assert Checkpoints(folder).list() == []
        assert Checkpoints(folder).latest() is None


# Crashes: the process may end at any line of Checkpoints._save


class Crash(BaseException):
    """The end of the process: nothing in the product may catch it."""


def run_to_line(count, action):
    """Run ``action`` and raise Crash before the count-th line that ``Checkpoints`` executes; False: it finished."""
    left, code = count, {Checkpoints._save.__code__, Checkpoints._remove_leftovers.__code__}

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code not in code:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Crash
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Crash:
        return True
    finally:
        sys.settrace(before)
    return False


def after_every_crash(tmp_path, prepared, action):
    """Yield the folder as it is after a crash at the first line, the second, ..., until ``action`` finishes."""
    for count in range(1, 1000):
        folder = tmp_path / f"crash{count}"
        shutil.copytree(prepared, folder)
        if not run_to_line(count, lambda folder=folder: action(Checkpoints(folder, keep=2))):
            assert count > 20
            return
        yield Checkpoints(folder, keep=2)
        shutil.rmtree(folder)


def test_after_a_crash_at_any_line_the_newest_checkpoint_is_whole(tmp_path, checkpoints):
    for step in (1, 2):
        save(checkpoints, step)
    seen = set()
    for crashed in after_every_crash(tmp_path, checkpoints.folder, lambda c: save(c, 3)):
        found = step_in(crashed.latest())
        seen.add(found)
        assert found in (2, 3)
        assert [step_in(path) for path in crashed.list()][-2:] in ([1, 2], [2, 3])
        save(crashed, found + 1)  # a run goes on from what it finds, and leaves nothing of the crash behind
        assert [step_in(path) for path in crashed.list()] == [found, found + 1]
        assert len(list(crashed.folder.iterdir())) == 2
    assert seen == {2, 3}


def test_after_a_crash_while_a_step_is_saved_again_one_of_the_two_is_there(tmp_path, checkpoints):
    for step in (1, 2):
        save(checkpoints, step)
    contents = set()
    for crashed in after_every_crash(tmp_path, checkpoints.folder, lambda c: save(c, 2, content=7)):
        step_in(crashed.latest())
        save(crashed, 3)
        second, third = crashed.list()
        contents.add(step_in(second))
        assert (second.name, step_in(third)) == ("step_00000002", 3)
        assert len(list(crashed.folder.iterdir())) == 2
    assert contents == {2, 7}


def test_saving_a_step_again_replaces_it(checkpoints):
    save(checkpoints, 5)
    save(checkpoints, 5, content=6)
    assert [(path.name, step_in(path)) for path in checkpoints.list()] == [("step_00000005", 6)]
    assert len(list(checkpoints.folder.iterdir())) == 1


# Damage


@pytest.fixture
def damaged(checkpoints, bytes_of):
    """(file, change of its bytes) -> check that loading refuses, names file and remedy, and touches nothing."""
    save(checkpoints, 10)
    path = save(checkpoints, 20)

    def check(name, change, fault="", remedy="the next older one is step_00000010"):
        file = path / name
        original = file.read_bytes()
        changed = change(original)
        if changed is None:
            file.unlink()
        else:
            file.write_bytes(changed)
        before = bytes_of(checkpoints.folder)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        message = str(caught.value)
        assert message.startswith(f"checkpoint {path} is damaged: ")
        assert fault in message
        assert f"Delete that folder to go on without it; {remedy}" in message
        assert bytes_of(checkpoints.folder) == before
        file.write_bytes(original)
        return message

    return check


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_truncated_or_longer_file(damaged, name):
    assert f"{name} is missing" in damaged(name, lambda content: None)
    for change in (lambda c: c[: len(c) // 2], lambda c: c[:-1], lambda c: b"", lambda c: c + b"x"):
        assert name in damaged(name, change)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_changed_bit_anywhere(damaged, checkpoints, name):
    size = (checkpoints.latest() / name).stat().st_size
    for place in range(0, size, 1 if name == "manifest.json" else 7):
        damaged(name, lambda c, place=place: c[:place] + bytes([c[place] ^ 1]) + c[place + 1 :])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '{"state.json": 5}', '{"state.json": {}}', "\0" * 100])
def test_a_manifest_that_is_no_manifest(damaged, text):
    damaged("manifest.json", lambda content: text.encode(), "manifest.json is not readable")


def test_a_manifest_that_lists_nothing(damaged):
    damaged("manifest.json", lambda content: b"{}", "state.json is missing")


def test_files_that_the_manifest_does_not_list_are_not_read(checkpoints):
    path = save(checkpoints, 1)
    (path / "more.safetensors").write_bytes(b"no tensors")
    assert set(load_checkpoint(path)[0]) == {"model", "ema"}


def test_the_remedy_where_there_is_no_older_one(checkpoints):
    path = save(checkpoints, 3)
    save(checkpoints, 4)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json is missing\. Delete .*; there is no older one$"):
        load_checkpoint(path)


def test_a_path_that_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step_00000009; give a folder checkpoints/step_"):
        load_checkpoint(tmp_path / "step_00000009")
    with pytest.raises(CheckpointError, match="weights is not a checkpoint; give a folder named step_XXXXXXXX"):
        module.step_of(tmp_path / "weights")


# Weights of another network


def test_another_architecture_is_named_by_tensor_and_nothing_is_loaded(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    own = {key: value.clone() for key, value in net.state_dict().items()}
    other = {
        "0.weight": torch.zeros(3, 5),
        "0.bias": torch.zeros(3),
        "2.weight": torch.zeros(1),
        "2.bias": torch.zeros(1),
    }
    with pytest.raises(CheckpointError) as caught:
        load_weights(net, other, tmp_path)
    assert str(caught.value) == (
        f"checkpoint {tmp_path} is of another architecture: missing 1.weight; missing 1.bias; unexpected 2.weight and "
        "2 more. Use the model settings it was trained with (config.json of its run folder), or another --workdir"
    )
    with pytest.raises(CheckpointError, match=r"0\.weight has shape \(3, 5\), the network \(3, 2\)\. Use the model"):
        load_weights(net, {**own, "0.weight": torch.zeros(3, 5)}, tmp_path)
    assert all(torch.equal(value, own[key]) for key, value in net.state_dict().items())
    load_weights(net, {key: value + 1 for key, value in own.items()}, tmp_path)
    assert all(torch.equal(value, own[key] + 1) for key, value in net.state_dict().items())


# The state of training


def test_a_state_comes_back_whole(new_run, fresh_state):
    run = new_run()
    trained, _ = run.train(steps=3)
    loaded = fresh_state(init=1)
    loaded.load(run.checkpoints.latest())
    assert loaded.step == 3
    assert loaded.ema.updates == 3
    for ours, theirs in ((loaded.model, trained.model), (loaded.ema.model, trained.ema.model)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    moments, expected = (s.optimizer.state_dict()["state"] for s in (loaded, trained))
    assert {k: set(v) for k, v in moments.items()} == {k: set(v) for k, v in expected.items()}
    assert set(moments[0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(moments[i][key], value) for i, entry in expected.items() for key, value in entry.items())


def test_moments_are_stored_by_the_names_of_the_parameters(new_run):
    run = new_run()
    state, _ = run.train(steps=1)
    names = {name for name, _ in state.model.named_parameters()}
    assert set(run.tensors()[0]["optimizer"]) == {
        f"{moment}/{name}" for name in names for moment in ("step", "exp_avg", "exp_avg_sq")
    }


def test_an_untrained_state_can_be_saved_too(checkpoints, fresh_state):
    state = fresh_state()
    loaded = fresh_state(init=1)
    loaded.load(state.save(checkpoints))
    assert loaded.step == 0
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), state.model.parameters(), strict=True))


def test_moments_of_a_parameter_that_is_not_there(checkpoints, fresh_state):
    state = fresh_state()
    tensors = {
        "model": state.model.state_dict(),
        "ema": state.ema.model.state_dict(),
        "optimizer": {"exp_avg/net.gone": torch.zeros(1)},
    }
    path = checkpoints.save(1, tensors, {"step": 1, "ema_updates": 1})
    with pytest.raises(CheckpointError, match=r"its optimizer knows net\.gone, which the model does not have"):
        state.load(path)


def test_the_best_lies_alone_whatever_its_step(tmp_path):
    best = BestCheckpoint(tmp_path / "best")
    assert best.states() == []
    for step in (5, 9, 7):
        values = {"step": step, "evaluation": {"fid": 10 - step}}
        path = best.save(step, {"model": {"weight": torch.full((2,), float(step))}}, values)
        assert best.list() == [path]
        assert best.states() == [values]
        tensors, stored = load_checkpoint(path)
        assert tensors["model"]["weight"].tolist() == [step, step]
        assert stored == values


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", None])
def test_a_best_checkpoint_that_cannot_be_read_is_the_best_of_nothing(tmp_path, content):
    best = BestCheckpoint(tmp_path)
    best.save(3, {}, {"evaluation": {"fid": 2.5}})
    (tmp_path / "step_00000004").mkdir()
    if content is not None:
        (tmp_path / "step_00000004" / "state.json").write_bytes(content)
    assert [state["evaluation"] for state in best.states()] == [{"fid": 2.5}]
