"""The run folder: which configuration belongs to it, and which checkpoint is used."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch

from configs import default
from training import CheckpointError, RunFolder


@pytest.fixture
def config():
    return default.get_config().to_dict()


@pytest.fixture
def folder(tmp_path, config):
    """A run with checkpoints 5 and 10."""
    folder = RunFolder(tmp_path / "run", keep=5)
    folder.store_config(config)
    for step in (5, 10):
        folder.checkpoints.save(step, {"model": {"w": torch.zeros(1)}}, {"step": step})
    return folder


def test_nothing_is_written_until_something_is_stored(tmp_path, config):
    folder = RunFolder(tmp_path / "run")
    assert folder.stored_config() is None
    assert folder.changes(config) == []
    assert folder.starting_point() is None
    assert not folder.path.exists()


@pytest.mark.parametrize("name", ["checkpoints", "ema_snapshots", "best", "samples", "likelihood", "evaluation"])
def test_what_stands_in_the_way_of_a_folder_is_found_at_once(tmp_path, name):
    folder = RunFolder(tmp_path)
    folder.check_folders()
    assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir()
    folder.check_folders()
    assert not list((tmp_path / name).iterdir())
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(NotADirectoryError, match=f"{name} is no folder, but results of the run are to be put there"):
        folder.check_folders()


def test_the_configuration_comes_back(folder, config):
    stored = folder.stored_config()
    assert stored == json.loads(json.dumps(config))  # JSON has lists for tuples
    assert stored["model"]["channel_mult"] == [1, 2, 2, 2]
    assert folder.changes(config) == []
    assert [path.name for path in folder.path.iterdir() if path.is_file()] == ["config.json"]


def test_what_may_change_is_reported(folder, config):
    config["training"]["steps"] = 7
    config["sampling"]["sampler"] = "pc"
    for free, value in (("root", "elsewhere"), ("workers", 3)):
        config["data"][free] = value
    config["model"]["dropout"] = 0.5
    config["model"]["precision"] = "float32"
    assert folder.changes(config) == [
        "data.root: '' -> 'elsewhere'",
        "data.workers: 2 -> 3",
        "model.dropout: 0.1 -> 0.5",
        "model.precision: 'auto' -> 'float32'",
        "sampling.sampler: 'deis' -> 'pc'",
        "training.steps: 0 -> 7",
    ]


@pytest.mark.parametrize(
    ("section", "key", "value", "before"),
    [("model", "channels", 64, 128), ("sde", "name", "ve", "vp"), ("data", "name", "toy", "digits")],
)
def test_what_the_weights_depend_on_must_not_change(folder, config, bytes_of, section, key, value, before):
    files = bytes_of(folder.path)
    other = copy.deepcopy(config)
    other[section][key] = value
    with pytest.raises(ValueError, match="holds a run with other settings") as caught:
        folder.changes(other)
    assert f"{folder.path} holds" in str(caught.value)
    assert f"{section}.{key} is {before!r} there and {value!r} now" in str(caught.value)
    assert "Use another --workdir" in str(caught.value)
    assert bytes_of(folder.path) == files


def test_data_may_change_where_only_process_and_network_are_fixed(folder, config):
    config["data"]["holdout"] = 0.5
    with pytest.raises(ValueError, match=r"data\.holdout is 0\.1 there and 0\.5 now"):
        folder.changes(config)
    assert folder.changes(config, fixed=("sde", "model")) == ["data.holdout: 0.1 -> 0.5"]
    config["sde"]["name"] = "ve"
    with pytest.raises(ValueError, match=r"sde\.name is 'vp' there and 've' now"):
        folder.changes(config, fixed=("sde", "model"))


def test_without_weights_everything_may_change(tmp_path, config):
    folder = RunFolder(tmp_path)
    folder.store_config(config)
    config["model"]["channels"] = 64
    assert folder.changes(config) == ["model.channels: 128 -> 64"]


def test_a_key_that_an_older_version_did_not_have_is_no_obstacle(folder, config):
    old = copy.deepcopy(config)
    del old["model"]["sigma_data"]
    folder.store_config(old)
    assert folder.changes(config) == ["model.sigma_data: None -> 0.5"]


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "\0\0", "[]", "5", "null"])
def test_a_configuration_that_is_broken(folder, config, text):
    folder.config_path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (is not valid JSON|holds no settings).*use another --workdir"):
        folder.changes(config)
    assert folder.config_path.read_text() == text


def test_a_file_in_place_of_the_folder(tmp_path, config):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file; give a folder as --workdir"):
        RunFolder(path).store_config(config)
    assert path.read_text() == "mine"


def test_the_newest_checkpoint_or_the_one_asked_for(folder, tmp_path):
    old, new = folder.checkpoints.list()
    assert folder.checkpoint() == new
    assert folder.checkpoint(str(old)) == old
    with pytest.raises(CheckpointError, match="is not a checkpoint; give a folder named step_XXXXXXXX"):
        folder.checkpoint(tmp_path / "run")
    empty = RunFolder(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*empty.checkpoints; train first \(--mode=train"):
        empty.checkpoint()


def test_training_starts_from_the_newest_or_elsewhere_but_not_from_the_past_of_a_run(folder, tmp_path):
    old, new = folder.checkpoints.list()
    assert folder.starting_point() == new
    assert folder.starting_point(new) == new
    with pytest.raises(CheckpointError, match=r"step_00000010 is newer than .*step_00000005; .* another --workdir"):
        folder.starting_point(old)
    assert RunFolder(tmp_path / "branch").starting_point(old) == old


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = RunFolder("~/run")
    assert folder.path == tmp_path / "run"
    assert folder.checkpoint("~/x/step_00000001") == tmp_path / "x" / "step_00000001"
    assert RunFolder(Path("~nobody-has-this-name")).path == Path("~nobody-has-this-name")
    assert os.environ["HOME"] == str(tmp_path)
