"""What a run leaves behind, and the modes that work on it."""

import json
import os
import re
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

import run_lib
from configs import default, stored, toy2d
from data import UniformDequantizer, get_dataset
from evaluation import ODEEstimator, classifier, evaluate_likelihood, generate, image_grid
from modes.likelihood_settings import likelihood_options
from modes.sampler_settings import build_sampler
from training import quantity, training_flops

DIGITS = [
    "--config.model.channels=8",
    "--config.model.channel_mult=1,1",
    "--config.model.precision=float32",
    "--config.training.steps=12",
    "--config.training.batch_size=8",
    "--config.training.log_every=3",
    "--config.training.checkpoint_every=5",
    "--config.training.warmup_steps=4",
    "--config.sampling.steps=3",
    "--config.sampling.num_images=7",
    "--config.sampling.batch_size=3",
    "--config.likelihood.num_images=3",
    "--config.likelihood.rtol=0.1",
    "--config.likelihood.atol=0.1",
    "--config.evaluation.num_images=6",
    "--config.evaluation.draws=1",
]


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The main job


@pytest.fixture(scope="module")
def main_job(cli, tmp_path_factory):
    """The default job, made small; (run folder, what it printed)."""
    folder = tmp_path_factory.mktemp("main")
    before = os.getcwd()
    os.chdir(folder)
    try:
        outcome = cli("--mode=train", *DIGITS)
    finally:
        os.chdir(before)
    return folder / "runs" / "digits", outcome.good()


def test_the_main_job_leaves_everything_in_its_folder(main_job, steps_of, samples_of):
    folder, out = main_job
    files = tree(folder)
    events = [file for file in files if file.startswith("tensorboard/events.out.tfevents")]
    scores = [f for f in files if re.fullmatch(r"likelihood/step_00000012_test_ode_seed0_[0-9a-f]{6}\.json", f)]
    parts = ("ema.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
    assert (len(events), len(scores)) == (1, 1)
    assert sorted(set(files) - {*events, *scores}) == sorted(
        [
            *[f"checkpoints/step_{step:08d}/{part}" for step in (10, 12) for part in parts],
            "commands.jsonl",
            "config.json",
            "metrics.jsonl",
            "nearest.npz",
            "report.html",
            "samples/step_00000012_deis_4nfe_seed0.json",
            "samples/step_00000012_deis_4nfe_seed0.npz",
            "samples/step_00000012_deis_4nfe_seed0.png",
            "samples/step_00000012_deis_4nfe_seed0_trajectory.gif",
            "samples/step_00000012_deis_4nfe_seed0_trajectory.png",
        ]
    )
    assert steps_of(folder) == [3, 6, 9, 12]
    assert samples_of(folder).shape == (7, 1, 8, 8)
    assert samples_of(folder).dtype == np.uint8
    assert "unet of " in out
    assert "1500 training samples of digits (1, 8, 8)" in out
    assert "12 steps of 8, run folder runs/digits" in out
    assert "step 12/12: loss " in out
    assert "7 samples by deis, 4 network evaluations each: runs/digits/samples/step_00000012_deis_4nfe_seed0.png" in out


def test_the_stored_configuration_is_the_resolved_one(main_job):
    folder, _ = main_job
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["channel_mult"] == [1, 1]
    assert config["training"]["steps"] == 12
    assert config["likelihood"]["atol"] == 0.1
    assert set(config) == set(default.get_config())
    again = stored.get_config(str(folder / "config.json"))
    assert again.model.channel_mult == (1, 1)
    assert json.loads(again.to_json()) == config


def test_the_samples_are_those_of_the_averaged_weights(main_job, model_of, samples_of):
    folder, _ = main_job
    data = get_dataset("digits")
    shown = {}
    for part in ("ema", "model"):
        config, sde, model = model_of(folder, part)
        sampler = build_sampler(config, sde)
        x = generate(sampler, sde, model, (1, 8, 8), 7, batch_size=3, seed=0, progress=False).x
        shown[part] = data.quantizer.to_uint8(x).numpy()
        grid = image_grid(x, data.quantizer)
        picture = np.asarray(Image.open(folder / "samples" / "step_00000012_deis_4nfe_seed0.png"))
        assert np.array_equal(grid, picture) == (part == "ema")
    assert np.array_equal(samples_of(folder), shown["ema"])
    assert not np.array_equal(samples_of(folder), shown["model"])


def scored(config, sde, model):
    """Values of the first three test images by the ODE, put together by hand; model: (x, t, y) -> score."""
    options = likelihood_options(config)
    own = {key: options.pop(key) for key in ("divergence", "probes", "noise")}
    data = get_dataset("digits", "test")
    estimator = ODEEstimator(sde, model, UniformDequantizer(data.quantizer), **own, options=options)
    report, codes = evaluate_likelihood(
        estimator, data, num_images=3, batch_size=config.likelihood.batch_size, seed=config.likelihood.seed
    )
    assert codes is None
    return report.values


def test_the_likelihood_is_that_of_the_averaged_weights(main_job, model_of, report_of):
    folder, out = main_job
    report, path = report_of(folder)
    assert report["images"] == len(report["values"]) == 3
    values = {}
    for part in ("ema", "model"):
        config, sde, model = model_of(folder, part)
        values[part] = scored(config, sde, lambda x, t, y, model=model: model(x, t))
    assert values["ema"] == report["values"]
    assert values["model"] != report["values"]
    assert f"ode: {report['bits_per_dim']:.4f} ± {report['std_error']:.4f} bits/dim on 3 samples of the split 't" in out
    assert f"s: runs/digits/likelihood/{path.name}\n" in out
    assert report["checkpoint"] == "runs/digits/checkpoints/step_00000012"


def test_the_commands_that_are_proposed_work(main_job, cli, monkeypatch, tmp_path):
    folder, out = main_job
    shutil.copytree(folder, tmp_path / "copy" / "runs" / "digits")
    monkeypatch.chdir(tmp_path / "copy")
    proposed = re.findall(r"  python run_lib\.py (.*)", out.partition("next:")[2])
    monkeypatch.setattr(classifier, "STEPS", 8)
    modes = [command.split()[0].removeprefix("--mode=") for command in proposed]
    assert modes == ["sample", "likelihood", "evaluate", "train"]
    outputs = [cli(*shlex.split(command, comments=True)).good() for command in proposed]
    assert "7 samples by dpmpp_sde, 4 network evaluations each" in outputs[0]
    assert [line.split(":")[0] for line in outputs[1].splitlines()[1:]] == ["ode", "elbo", "ddpm", "report"]
    assert outputs[1].count("bits/dim on 3 samples") == 3
    assert "frechet_distance by deis in 3 steps: " in outputs[2]
    assert "continuing runs/digits from step 12" in outputs[3]
    assert "step 24/24" in outputs[3]
    assert f"tensorboard --logdir={Path('runs') / 'digits'}" in out


# Modes on a run, without its recipe


def test_likelihood_of_any_split_of_a_run(cli, trained, bytes_of, report_of):
    before = bytes_of(trained / "checkpoints")
    for split, count in (("train", 5), ("test", 7)):
        out = cli(
            "--mode=likelihood",
            f"--workdir={trained}",
            f"--config.likelihood.split={split}",
            f"--config.likelihood.num_images={count}",
            "--config.likelihood.seed=-3",
        ).good()
        report, _ = report_of(trained, "ode_seed-3", split)
        assert report["images"] == count
        assert f"on {count} samples of the split '{split}'" in out
    assert bytes_of(trained / "checkpoints") == before


def test_a_checkpoint_brings_its_run(cli, trained, monkeypatch, samples_of):
    old = trained / "checkpoints" / "step_00000010"
    assert f"using the averaged weights of {old}\n" in cli("--mode=sample", f"--checkpoint={old}/").good()
    x = samples_of(trained, "step_00000010*")
    monkeypatch.chdir(old.parent)
    assert "using the averaged weights of step_00000010\n" in cli("--mode=sample", "--checkpoint=step_00000010").good()
    assert sorted(os.listdir()) == ["step_00000010", "step_00000012"]
    assert np.array_equal(samples_of(trained, "step_00000010*"), x)
    assert "step_00000012\n" in cli("--mode=sample", f"--workdir={trained}").good()
    assert not np.array_equal(samples_of(trained, "step_00000012*"), x)


def test_a_run_can_be_moved_and_named_in_any_way(cli, trained, tmp_path, monkeypatch):
    place = tmp_path / "moved to" / "ü 名 =x"
    shutil.move(trained, place)
    assert "using the averaged weights" in cli("--mode=sample", f"--workdir={place}").good()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(place) in cli("--mode=sample", "--workdir=~/moved to/ü 名 =x").good()
    checkpoint = "~/moved to/ü 名 =x/checkpoints/step_00000012"
    assert str(place) in cli("--mode=sample", f"--checkpoint={checkpoint}").good()
    assert "continuing" in cli("-mode", "train", "-workdir", place, "--config.training.steps", "13").good()
    assert os.listdir() == []
    again = cli("--mode=train", f"--workdir={place}").good()
    assert f"  python run_lib.py --mode=sample {shlex.quote(f'--workdir={place}')} --sampler=dpmpp_sde" in again


def test_the_last_of_several_values_counts(cli, trained, tiny):
    out = cli(
        "--mode=sample",
        "--mode=train",
        "--config=configs/digits.py",
        *tiny,
        "--workdir=elsewhere",
        f"--workdir={trained}",
        "--config.training.steps=15",
        "--config.training.steps=0x0e",
    ).good()
    assert f"continuing {trained} from step 12" in out
    assert "step 14/14" in out
    assert os.listdir() == []


# Going on


def test_what_may_change_is_said_and_stored(cli, trained, steps_of):
    out = cli("--mode=train", f"--workdir={trained}", "--config.training.steps=14", "--config.model.dropout=0.5").good()
    assert "changed since this run began: training.steps: 12 -> 14\n" in out
    assert "changed since this run began: model.dropout: 0.2 -> 0.5\n" in out
    assert out.count("changed since") == 2
    assert json.loads((trained / "config.json").read_text())["training"]["steps"] == 14
    assert steps_of(trained) == list(range(1, 15))
    assert "changed since" not in cli("--mode=train", f"--workdir={trained}").good()


def test_fewer_steps_than_are_done(cli, trained, bytes_of, steps_of):
    before = bytes_of(trained / "checkpoints")
    out = cli("--mode=train", f"--workdir={trained}", "--config.training.steps=6").good()
    assert "nothing to train: 12 steps are done, and training.steps is 6" in out
    assert bytes_of(trained / "checkpoints") == before
    assert steps_of(trained) == list(range(1, 13))


def test_a_time_limit_is_said_with_the_way_on(cli, tiny):
    arguments = ["--mode=train", "--workdir=run", *tiny]
    out = cli(*arguments, "--config.training.time_limit=1e-9").good()
    assert "time limit of 1e-09 minutes reached after step 1 of 12; all is saved" in out
    assert "  python run_lib.py --mode=train --workdir=run   # goes on to step 12" in out
    assert "6 samples by deis" in out
    assert "step 12/12" in cli("--mode=train", "--workdir=run", "--config.training.time_limit=0").good()


# Conditional models


def test_a_conditional_model_is_sampled_and_scored_with_its_labels(cli, model_of, samples_of, report_of):
    out = cli(
        "--mode=train", "--workdir=run", *DIGITS, "--config.model.conditional=True", "--config.training.accumulation=2"
    )
    assert "7 samples" in out.good()
    folder = Path("run")
    config, sde, model = model_of(folder)
    assert model.net.embed.label.weight.shape[0] == 11
    data = get_dataset("digits")
    draw = partial(generate, build_sampler(config, sde), sde, model, (1, 8, 8), 7, batch_size=3, progress=False)
    x = draw(labels=torch.arange(7)).x
    assert np.array_equal(samples_of(folder), data.quantizer.to_uint8(x).numpy())
    assert not np.array_equal(samples_of(folder), data.quantizer.to_uint8(draw().x).numpy())
    assert report_of(folder)[0]["values"] == scored(config, sde, model)


# Dry runs and recipes


def test_a_dry_run_shows_all_and_writes_nothing(cli, tiny, trained, bytes_of, model_of):
    out = cli("--mode=train", "--dry_run", *tiny, "--workdir=new").good()
    config = json.loads(out[: out.index("\n}\n") + 2])
    expected = toy2d.get_config()
    for argument in tiny[1:]:
        name, value = argument.removeprefix("--config.").split("=")
        section, key = name.split(".")
        kind = expected[section].get_type(key)
        expected[section][key] = value if kind is str else int(value) if kind is object else kind(float(value))
    assert config == json.loads(expected.to_json())
    _, _, model = model_of(trained)
    parameters = sum(p.numel() for p in model.parameters())
    assert f"mlp of {parameters:,} parameters (" in out
    assert re.search(
        r"memory: about \d+ MiB: \d+ MiB for weights, .*, \d+ MiB for the activations of 8 samples in", out
    )
    weights = 2 * sum(p.numel() for p in model.parameters() if p.ndim == 2)  # each multiplies and adds once
    assert f"compute: {quantity(8 * training_flops(model, (2,)).total, 'FLOP')} a step; " in out
    assert f"; for each sample {quantity(weights, 'FLOP')} forward and " in out
    assert "12 steps of 8, run folder new" in out
    assert os.listdir() == []
    before = bytes_of(trained)
    assert '"width": 8' in cli("--mode=sample", "--dry_run", f"--workdir={trained}").good()
    assert bytes_of(trained) == before


def test_a_dry_run_converts_no_images(cli, tmp_path):
    for k in range(4):
        Image.new("RGB", (16, 16), (k, 0, 9)).save(tmp_path / f"{k}.png")
    small = ["--config.data.image_size=16", "--config.model.groups=1", "--config.model.channel_mult=1,1", *DIGITS[:1]]
    out = cli("--mode=train", "--dry_run", f"--config=configs/folder.py:{tmp_path}", *small).good()
    assert '"cache": "cache"' in out
    assert "converting" not in out
    assert os.listdir() == []


def test_the_memory_of_a_dry_run_is_that_of_a_part_of_the_batch(cli, tiny):
    def activations(*more):
        out = cli("--mode=train", "--dry_run", *tiny, "--config.model.width=64", *more).good()
        return int(re.search(r"(\d+) MiB for the activations", out)[1])

    whole = activations("--config.training.batch_size=65536")
    assert whole > 50
    parts = activations("--config.training.batch_size=65536", "--config.training.accumulation=4")
    assert parts == pytest.approx(whole / 4, abs=1)


def test_a_recipe_is_found_as_it_is_or_beside_the_program(cli, tiny, monkeypatch, tmp_path):
    def run_folder(*arguments):
        return re.search(r"run folder (.*)", cli("--mode=train", "--dry_run", *arguments).good())[1]

    assert run_folder() == "runs/digits"
    assert run_folder("--config=configs/digits.py:ve") == "runs/digits-ve"
    assert run_folder("--config", "configs/toy2d.py:moons") == "runs/toy2d-moons"
    own = "from configs import toy2d\n\n\ndef get_config(name='rings'):\n    return toy2d.get_config(name)\n"
    Path("configs").mkdir()
    Path("configs/mine.py").write_text(own)
    Path("configs/toy2d.py").write_text(own)  # the nearer one wins
    assert run_folder("--config=configs/mine.py") == "runs/mine"
    assert '"rings"' in cli("--mode=train", "--dry_run", "--config=configs/toy2d.py").good()
    assert '"moons"' in cli("--mode=train", "--dry_run", f"--config={Path('configs/mine.py').absolute()}:moons").good()
    monkeypatch.setenv("HOME", str(tmp_path / "cwd"))
    assert run_folder("--config=~/configs/mine.py:rings") == "runs/mine-rings"
    assert set(os.listdir("configs")) <= {"mine.py", "toy2d.py", "__pycache__"}


def test_flags_may_stand_in_a_file(cli, tiny):
    Path("flags").write_text("\n".join(["--mode=train", *tiny, "--workdir=from file"]))
    assert "step 12/12" in cli("--flagfile=flags").good()
    assert "continuing from file from step 12" in cli("--flagfile=flags", "--config.training.steps=13").good()


def test_every_mode_and_flag_is_explained():
    assert list(run_lib.MODES) == list(run_lib.FLAGS["mode"].parser.enum_values)
    for flag in run_lib.FLAGS.flags_by_module_dict()["run_lib"]:
        assert len(flag.help) > 15
    assert isinstance(default.get_config(), ConfigDict)


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are for Linux")
def test_where_a_compiler_would_help_that_is_told(cli, tiny, tiny_digits, tmp_path, monkeypatch):
    short = [
        "--mode=train",
        "--config.training.steps=1",
        "--config.sampling.num_images=1",
        f"--workdir={tmp_path / 'run'}",
    ]
    lean = [*tiny_digits, *short, "--config.likelihood.num_images=1", "--config.model.precision=bfloat16"]
    monkeypatch.delenv("SCORE_SDE_FUSED", raising=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    note = "note: there is no C++ compiler (g++, or what CXX names)"
    assert note in cli(*lean).good()
    assert note not in cli(*tiny, *short, f"--workdir={tmp_path / 'points'}").good()  # their network has no norms
    monkeypatch.setenv("SCORE_SDE_FUSED", "0")
    assert note not in cli(*lean).good()
    monkeypatch.delenv("SCORE_SDE_FUSED")
    monkeypatch.setenv("CXX", sys.executable)  # what a compiler cannot do, a warning tells
    assert note not in cli(*lean).good()
