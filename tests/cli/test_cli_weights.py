"""Weights of other projects become runs, and runs become what other projects read."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from diffusers_folders import VARIANTS, save, theirs
from models_golden import Golden
from PIL import Image

from models import pretrained
from training import load_checkpoint

FAST = ["--config.sampling.steps=2", "--config.sampling.num_images=2", "--config.sampling.trajectory=0"]
ROUGH = ["--config.likelihood.num_images=2", "--config.likelihood.method=euler", "--config.likelihood.steps=2"]


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "ddpm-tiny", theirs(**VARIANTS["attention"]))


@pytest.fixture
def images(tmp_path):
    """A folder of eight images of 16x16."""
    place = tmp_path / "images"
    place.mkdir()
    for k in range(8):
        Image.new("RGB", (16, 16), (30 * k, 255 - 30 * k, 99)).save(place / f"{k}.png")
    return place


@pytest.fixture
def checkpoint(tmp_path):
    """(file of score_sde_pytorch, file of its settings); its trained weights are twice the averaged ones."""
    golden = Golden("score_sde_ncsnpp_ve")
    fixed = [name for name, value in golden.tensors.items() if name.endswith(".W") and value.ndim == 1]
    model = {f"module.{name}": value * (1 if name in fixed else 2) for name, value in golden.tensors.items()}
    shadow = [value for name, value in golden.tensors.items() if name not in fixed]
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": shadow}
    place = tmp_path / "ncsnpp"
    place.mkdir()
    torch.save({"model": model, "ema": ema, "optimizer": {}, "step": 77}, place / "checkpoint_3.pth")
    (place / "settings.json").write_text(json.dumps(golden.config))
    return place / "checkpoint_3.pth", place / "settings.json"


def test_a_folder_of_diffusers_becomes_a_run(cli, folder):
    out = cli("--mode=import", f"--source={folder}").good()
    assert "unet of 702,499 parameters" in out
    assert "python run_lib.py --mode=sample --workdir=runs/ddpm-tiny" in out
    assert "2 samples by deis" in cli("--mode=sample", "--workdir=runs/ddpm-tiny", *FAST).good()


def test_the_run_has_the_weights_and_all_settings(cli, checkpoint, tmp_path):
    file, settings = checkpoint
    cli("--mode=import", f"--source={file}", f"--source_config={settings}", f"--workdir={tmp_path / 'run'}").good()
    expected = pretrained.load(file, config=settings)
    tensors, values = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000077")
    for name, value in expected.net.state_dict().items():
        assert torch.equal(tensors["ema"][f"net.{name}"], value)
        factor = 1 if name == "embed.waves.frequencies" else 2
        assert torch.equal(tensors["model"][f"net.{name}"], factor * value)
    assert values == {"step": 77, "ema_updates": 77}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["sde"]["name"], config["sde"]["sigma_max"]) == ("ve", 50.0)
    assert (config["data"]["name"], config["data"]["low"], config["data"]["image_size"]) == ("none", 0.0, 16)
    assert config["model"]["progressive_input"] == "residual"


def test_with_data_an_imported_run_is_scored_and_trained_on(cli, checkpoint, images, tmp_path):
    file, settings = checkpoint
    run = f"--workdir={tmp_path / 'run'}"
    cli("--mode=import", f"--source={file}", f"--source_config={settings}", run).good()
    for mode in ("likelihood", "train", "interpolate", "dequantizer"):
        fault = cli(f"--mode={mode}", run, "--config.training.steps=79").fault()
        assert "has no data of its own: give some that fit its network, as --config.data.name=folder" in fault
    data = ["--config.data.name=folder", f"--config.data.root={images}", "--config.data.holdout=0.5"]
    assert "bits/dim on 2 samples" in cli("--mode=likelihood", run, *data, *ROUGH).good()
    steps = ["--config.training.steps=79", "--config.training.batch_size=2", "--config.training.warmup_steps=0"]
    out = cli("--mode=train", run, *data, *FAST, *ROUGH, *steps).good()
    assert "from step 77" in out
    assert "data.name: 'none' -> 'folder'" in out
    assert (tmp_path / "run" / "checkpoints" / "step_00000079").is_dir()
    fault = cli("--mode=train", run, "--config.data.low=-1", *steps).fault()
    assert "holds a run with other settings: data.low is 0.0 there and -1.0 now" in fault


def test_a_recipe_brings_its_data(cli, folder, images, tmp_path):
    recipe = ["--config=configs/folder.py", f"--config.data.root={images}", "--config.data.image_size=16"]
    cli("--mode=import", f"--source={folder}", f"--workdir={tmp_path / 'run'}", *recipe).good()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"]["name"], config["model"]["conditioning"]) == ("folder", "chain")
    assert config["training"]["batch_size"] == 32


def test_a_trained_run_is_drawn_from_by_diffusers(cli, digits):
    out = cli("--mode=export", f"--workdir={digits}").good()
    place = digits / "export" / "step_00000004-diffusers"
    assert f'DDPMPipeline.from_pretrained("{place}")' in out
    pipeline = DDPMPipeline.from_pretrained(place)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=3, num_inference_steps=4, output_type="np").images.shape == (3, 8, 8, 1)
    file = digits / "export" / "step_00000004.safetensors"
    weights = load_checkpoint(digits / "checkpoints" / "step_00000004")[0]["ema"]
    model = pretrained.load(file)
    assert all(torch.equal(weights[f"net.{name}"], value) for name, value in model.net.state_dict().items())
    beside = json.loads(file.with_suffix(".json").read_text())
    assert (beside["network"], beside["levels"], beside["options"]["image_size"]) == ("unet", 17, 8)


def test_export_and_import_are_inverse(cli, digits, tmp_path):
    cli("--mode=export", f"--workdir={digits}").good()
    file = digits / "export" / "step_00000004.safetensors"
    cli("--mode=import", f"--source={file}", f"--workdir={tmp_path / 'again'}").good()
    draw = [*FAST, "--config.sampling.num_images=5", "--config.model.precision=float32"]
    for run in (digits, tmp_path / "again"):
        shutil.rmtree(run / "samples", ignore_errors=True)
        cli("--mode=sample", f"--workdir={run}", *draw).good()
    first, second = (sorted((run / "samples").glob("*.png"))[0].read_bytes() for run in (digits, tmp_path / "again"))
    assert first == second
    # The features of a reference are those of data, which weights alone do not have.
    np.savez(tmp_path / "reference.npz", features=np.zeros((3, 192), np.float32), about="{}")
    flags = [
        f"--config.evaluation.reference={tmp_path / 'reference.npz'}",
        "--config.evaluation.extractor=inception",
    ]
    fault = cli("--mode=evaluate", f"--workdir={tmp_path / 'again'}", *flags).fault()
    assert "reference.npz, which holds features of data that must be here too, and the run has none: give" in fault


def test_an_import_is_scored_as_what_was_exported(cli, digits, tmp_path):
    """Whether it was trained on dequantised levels or on points comes with the file; bits/dim depend on it."""
    cli("--mode=export", f"--workdir={digits}").good()
    file, again = digits / "export" / "step_00000004.safetensors", tmp_path / "again"
    cli("--mode=import", f"--source={file}", f"--workdir={again}").good()
    cli("--mode=likelihood", f"--workdir={digits}", *ROUGH).good()
    flags = ["--config.data.name=digits", "--config.model.precision=float32"]
    cli("--mode=likelihood", f"--workdir={again}", *flags, *ROUGH).good()
    reports = [next((run / "likelihood").glob("*.json")) for run in (digits, again)]
    values = [json.loads(report.read_text())["values"] for report in reports]
    assert values[0] == values[1]


def test_averages_of_an_import_that_nothing_has_moved_yet_are_all_the_same(cli, digits, tmp_path):
    cli("--mode=export", f"--workdir={digits}").good()
    file, run = digits / "export" / "step_00000004.safetensors", f"--workdir={tmp_path / 'again'}"
    averages = ["--config=configs/digits.py", "--config.training.averages=power:0.1"]
    cli("--mode=import", f"--source={file}", run, *averages).good()
    out = cli("--mode=average", run, "--config.likelihood.num_images=4", "--config.averaging.widths=0.05").good()
    losses = re.findall(r"^(\S+): held-out loss (.*)$", out, re.MULTILINE)
    assert [name for name, _ in losses] == ["ema", "ema_power_0.1"]  # of no profile, no other is made
    assert losses[0][1] == losses[1][1]
    assert "ema_power_0.1 is the next, 0.0e+00 ± 0.0e+00 above it" in out


def test_a_conditional_run_is_exported_with_its_classes(cli, labelled):
    out = cli("--mode=export", f"--workdir={labelled}").good()
    assert "its network wants class_labels: 0 .. 9, and 10 for none" in out
    unet = UNet2DModel.from_pretrained(labelled / "export" / "step_00000004-diffusers" / "unet")
    assert unet.config.num_class_embeds == 11


def test_what_diffusers_cannot_have_is_said_and_the_file_written(cli, trained):
    out = cli("--mode=export", f"--workdir={trained}").good()
    assert "no folder for diffusers: diffusers' pipeline has no network like 'mlp'; only 'unet' fits it" in out
    file = trained / "export" / "step_00000012.safetensors"
    assert pretrained.load(file)(torch.zeros(1, 2), 0.5).isfinite().all()
    assert "a network 'mlp' is not one of images" in cli("--mode=import", f"--source={file}").fault()


# Mistakes


def test_mistakes_of_import(cli, folder, checkpoint, digits, bytes_of, tmp_path):
    file, _ = checkpoint
    assert "--mode=import needs --source=PATH" in cli("--mode=import").fault()
    assert "--source= is empty" in cli("--mode=import", "--source=").fault()
    assert "--source is for --mode=import; --mode=sample works" in cli("--mode=sample", f"--source={folder}").fault()
    assert "no file or folder nothing.pth" in cli("--mode=import", "--source=nothing.pth").fault()
    assert "does not hold its configuration" in cli("--mode=import", f"--source={file}").fault()
    assert "unknown format 'sde'" in cli("--mode=import", f"--source={file}", "--source_format=sde").fault()
    wrong = cli("--mode=import", f"--source={file}", "--source_config=vp/ddpm/church").fault()
    assert "is it of another configuration?" in wrong
    before = bytes_of(digits)
    again = cli("--mode=import", f"--source={folder}", f"--workdir={digits}").fault()
    assert "holds a run already; give another --workdir" in again
    assert bytes_of(digits) == before
    assert not list(tmp_path.glob("cwd/runs/*"))  # nothing was begun


def test_an_import_can_be_tried_dry(cli, folder, tmp_path):
    out = cli("--mode=import", f"--source={folder}", "--dry_run").good()
    assert "unet of 702,499 parameters" in out
    assert not (tmp_path / "cwd" / "runs").exists()
