"""Run folders, checkpoints and data that are not as they should be: one line on stderr, and nothing is lost."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import batch_indices

# Run folders


def test_a_run_that_does_not_exist(cli):
    for mode in ("sample", "likelihood"):
        assert "no checkpoint in new/checkpoints; train first" in cli(f"--mode={mode}", "--workdir=new").fault()
    assert "no checkpoint in runs/digits/checkpoints" in cli("--mode=sample").fault()
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("file", "file is a file; give a folder as --workdir"),
        ("file/below", "Not a directory: 'file/below'"),
        ("/proc/new", "No such file or directory: '/proc/new'"),
    ],
)
def test_a_run_folder_that_cannot_be_made(cli, tiny, workdir, message):
    if workdir.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("needs /proc, where even root cannot make a folder")
    Path("file").write_text("mine")
    outcome = cli("--mode=train", f"--workdir={workdir}", *tiny)
    assert message in outcome.fault()
    assert "step 1" not in outcome.out  # not after the training
    assert Path("file").read_text() == "mine"
    assert os.listdir() == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_run_folder_without_permission(cli, tiny, trained):
    trained.chmod(0o500)
    try:
        assert "Permission denied" in cli("--mode=train", f"--workdir={trained}", *tiny).fault()
        trained.chmod(0)
        assert "Permission denied" in cli("--mode=sample", f"--workdir={trained}").fault()
    finally:
        trained.chmod(0o700)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "ValueError: not valid JSON (Expecting property name"),
        ("", "not valid JSON"),
        ("\0\0", "not valid JSON"),
        ("[]", "ValueError: no settings; restore it, or use another --workdir"),
        ("null", "no settings"),
        ('{"training": 5}', "the key 'training' is 5; restore it"),
        ('{"training": null}', "the key 'training' is None; restore it"),
        ('{"seed": {"a": 1}}', "the key 'seed' is {'a': 1}; restore it"),
        ('{"training": {"more": 5}}', "the key 'more' is not known to this version; remove it there"),
        ('{"training": {"steps": "x"}}', "Could not override field 'steps'"),
        ('{"model": {"channel_mult": [1, "x"]}}', "config.model.channel_mult is (1, 'x'); it takes numbers"),
    ],
)
def test_a_run_whose_configuration_is_broken(cli, trained, bytes_of, text, message):
    (trained / "config.json").write_text(text)
    before = bytes_of(trained)
    for mode in ("train", "sample", "likelihood"):
        fault = cli(f"--mode={mode}", f"--workdir={trained}").fault()
        assert message in fault
        assert fault.startswith((f"{trained}/config.json: ", "config.model"))
    assert bytes_of(trained) == before


def test_a_broken_configuration_with_a_recipe_beside_it(cli, trained, tiny, bytes_of):
    (trained / "config.json").write_text("{")
    before = bytes_of(trained)
    for mode in ("train", "sample"):
        fault = cli(f"--mode={mode}", f"--workdir={trained}", *tiny).fault()
        assert f"{trained}/config.json is not valid JSON" in fault
        assert "restore it, or use another --workdir" in fault
    assert bytes_of(trained) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.width=16", "model.width is 8 there and 16 now"),
        ("sde.name=ve", "sde.name is 'vp' there and 've' now"),
        ("sde.beta_max=10", "sde.beta_max is None there and 10.0 now"),
        ("model.prediction=eps", "model.prediction is 'edm' there and 'eps' now"),
        ("data.size=99", "data.size is 100 there and 99 now"),
    ],
)
def test_a_run_goes_on_only_as_what_it_is(cli, trained, bytes_of, change, message):
    before = bytes_of(trained)
    modes = ("train",) if change.startswith("data") else ("train", "sample", "likelihood")
    for mode in modes:
        fault = cli(f"--mode={mode}", f"--workdir={trained}", f"--config.{change}").fault()
        assert fault.startswith(f"{trained} holds a run with other settings: {message}. Use another --workdir")
    assert bytes_of(trained) == before


def test_a_run_and_the_recipe_of_another(cli, trained, bytes_of):
    before = bytes_of(trained)
    for mode in ("train", "sample", "likelihood"):
        fault = cli(f"--mode={mode}", f"--workdir={trained}", "--config=configs/digits.py").fault()
        assert "holds a run with other settings: " in fault
        assert (
            "data.name is 'toy' there and 'digits' now" if mode == "train" else "model.channels is 128 there"
        ) in fault
    assert bytes_of(trained) == before


# Checkpoints


def newest(run):
    return max((run / "checkpoints").iterdir())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def test_a_damaged_checkpoint_that_was_asked_for_and_one_that_is_alone(cli, trained, bytes_of):
    truncate(newest(trained) / "ema.safetensors")
    before = bytes_of(trained)
    for mode in ("train", "sample", "likelihood"):
        fault = cli(f"--mode={mode}", f"--checkpoint={newest(trained)}", "--config.training.steps=14").fault()
        assert fault.startswith(f"checkpoint {newest(trained)} is damaged: ema.safetensors has ")
        assert "Delete that folder to go on without it; the next older one is step_00000010" in fault
    assert bytes_of(trained) == before
    shutil.rmtree(trained / "checkpoints" / "step_00000010")
    before = bytes_of(trained)
    for mode in ("train", "sample", "likelihood"):
        fault = cli(f"--mode={mode}", f"--workdir={trained}", "--config.training.steps=14").fault()
        assert fault.startswith(f"checkpoint {newest(trained)} is damaged: ema.safetensors has ")
        assert "Delete that folder to go on without it; there is no older one" in fault
    assert bytes_of(trained) == before


@pytest.mark.parametrize("mode", ["train", "sample", "likelihood"])
def test_a_path_that_is_no_checkpoint(cli, trained, bytes_of, mode):
    before = bytes_of(trained)
    for path, message in {
        "nonsense": "nonsense is not a checkpoint; give a folder named step_XXXXXXXX",
        trained: "trained is not a checkpoint; give a folder named step_XXXXXXXX",
        trained / "checkpoints": "checkpoints is not a checkpoint; give a folder named",
        trained / "checkpoints" / "step_00000099": "step_00000099; give a folder checkpoints/step_XXXXXXXX",
        newest(trained) / "ema.safetensors": "ema.safetensors is not a checkpoint",
    }.items():
        assert message in cli(f"--mode={mode}", f"--checkpoint={path}").fault()
    assert bytes_of(trained) == before
    assert os.listdir() == []


def test_a_checkpoint_of_another_architecture(cli, trained, tiny, bytes_of):
    other = "--config.model.width=16"
    cli("--mode=train", "--workdir=other", *tiny, other).good()
    before = bytes_of(trained), bytes_of(Path("other"))
    for mode in ("train", "sample", "likelihood"):
        fault = cli(f"--mode={mode}", "--workdir=other", f"--checkpoint={newest(trained)}").fault()
        assert fault.startswith(f"checkpoint {newest(trained)} is of another architecture: net.embed.mlp.0.weight has ")
        assert "shape (8, 8), the network (16, 16)" in fault
        assert "Use the model settings it was trained with" in fault
    assert (
        "is of another architecture"
        in cli("--mode=train", "--workdir=new", *tiny, other, f"--checkpoint={newest(trained)}").fault()
    )
    assert (bytes_of(trained), bytes_of(Path("other"))) == before
    assert os.listdir() == ["other"]


def test_the_past_of_a_run_is_not_mixed_with_its_present(cli, trained, tiny, bytes_of):
    before = bytes_of(trained)
    old = trained / "checkpoints" / "step_00000010"
    fault = cli("--mode=train", f"--checkpoint={old}", "--config.training.steps=20").fault()
    assert "step_00000012 is newer than " in fault
    assert "use another --workdir, or first delete the newer ones" in fault
    assert bytes_of(trained) == before
    assert (
        "continuing branch from step 10" in cli("--mode=train", "--workdir=branch", *tiny, f"--checkpoint={old}").good()
    )
    assert bytes_of(trained) == before


# Data


def test_a_corrupt_image_ends_the_training_and_the_steps_before_are_kept(cli, steps_of):
    rng = np.random.default_rng(0)
    images, run = Path("images"), Path("run")
    images.mkdir()
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(images / f"{number:02d}.png")
    bad = images / f"{batch_indices(40, 4, 5, seed=0)[0]:02d}.png"  # of the sixth batch
    bad.write_bytes(bad.read_bytes()[:60])
    arguments = [
        "--mode=train",
        "--workdir=run",
        "--config=configs/folder.py:images",
        "--config.data.image_size=8",
        "--config.data.holdout=0",
        "--config.data.cache=",
        "--config.likelihood.split=train",
        "--config.model.channels=8",
        "--config.model.channel_mult=1,1",
        "--config.model.res_blocks=1",
        "--config.training.steps=10",
        "--config.training.batch_size=4",
        "--config.training.log_every=1",
        "--config.sampling.steps=2",
        "--config.sampling.num_images=2",
        "--config.likelihood.num_images=2",
        "--config.likelihood.rtol=0.1",
        "--config.likelihood.atol=0.1",
    ]
    fault = cli(*arguments).fault()
    assert fault.startswith(f"cannot use image {bad}: ")
    assert "remove the file or replace it by an intact one" in fault
    assert steps_of(run) == [1, 2, 3, 4, 5]
    assert newest(run).name == "step_00000005"
    bad.unlink()
    assert "continuing run from step 5\n" in cli(*arguments).good()
    assert steps_of(run) == list(range(1, 11))
    assert json.loads((run / "config.json").read_text())["data"]["root"] == "images"


def test_an_exploding_run_says_where_and_keeps_what_was_good(cli, trained, bytes_of, steps_of):
    before = bytes_of(trained / "checkpoints")
    fault = cli(
        "--mode=train", f"--workdir={trained}", "--config.training.learning_rate=1e38", "--config.training.steps=20"
    ).fault()
    assert fault.startswith("the loss or its gradient is not finite at step 14. Likely causes: a learning rate")
    assert bytes_of(trained / "checkpoints") == before
    assert steps_of(trained) == list(range(1, 14))
    back = cli(
        "--mode=train", f"--workdir={trained}", "--config.training.learning_rate=1e-3", "--config.training.steps=14"
    )
    assert "continuing" in back.good()
