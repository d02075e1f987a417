"""Sampling from a run: its settings, and the pictures that it leaves."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import density_picture, generate
from modes.sampler_settings import build_sampler
from samplers import SAMPLERS


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_sampler_samples_a_run(cli, trained, name, model_of, samples_of):
    loose = {"rtol": 0.3, "atol": 0.1} if name == "adaptive_sde" else {}
    flags = [f"--config.sampling.{key}={value}" for key, value in loose.items()]
    out = cli("--mode=sample", f"--workdir={trained}", f"--sampler={name}", "--config.sampling.seed=5", *flags).good()
    assert f"using the averaged weights of {trained}/checkpoints/step_00000012" in out
    nfe = int(re.search(rf"6 samples by {name}, (\d+) network evaluations each", out)[1])
    (file,) = (trained / "samples").glob(f"step_00000012_{name}_{nfe}nfe*_seed5*.npz")
    x = samples_of(trained, file.stem)
    config, sde, model = model_of(trained)
    config.sampling.update(sampler=name, **loose)
    expected = generate(build_sampler(config, sde), sde, model, (2,), 6, batch_size=4, seed=5, progress=False)
    assert np.array_equal(x, expected.x.detach().numpy())
    picture = np.asarray(Image.open(file.with_suffix(".png")))
    assert np.array_equal(picture, density_picture(expected.x.detach()))
    assert json.loads((trained / "config.json").read_text())["sampling"]["sampler"] == "deis"  # as it was


def test_settings_of_a_sampler_reach_it_and_are_kept_beside_the_samples(cli, trained, model_of, samples_of):
    flags = {"grid": "1,0.7,0.2,0.05", "eta": 0.5, "denoise": False, "threshold": "clip", "trajectory": 0, "seed": 8}
    out = cli(
        "--mode=sample",
        f"--workdir={trained}",
        "--sampler=ddim",
        "--config.sampling.snr=0.3",
        *(f"--config.sampling.{key}={value}" for key, value in flags.items()),
    ).good()
    assert "6 samples by ddim, 3 network evaluations each" in out
    assert "note: ddim makes no use of the settings snr, steps\n" in out
    name = Path(re.search(r"each: (.*)\.png", out)[1]).name
    assert re.fullmatch(r"step_00000012_ddim_3nfe_seed8_[0-9a-f]{6}", name)
    x = samples_of(trained, name)
    config, sde, model = model_of(trained)
    config.sampling.sampler = "ddim"
    for key, value in flags.items():
        config.sampling[key] = value
    expected = generate(build_sampler(config, sde), sde, model, (2,), 6, batch_size=6, seed=8, progress=False)
    np.testing.assert_allclose(x, expected.x.detach().numpy(), atol=1e-6)
    told = json.loads((trained / "samples" / f"{name}.json").read_text())
    assert told["times"] == [1, 0.7, 0.2, 0.05]
    assert {key: told[key] for key in flags} == flags
    assert told["checkpoint"].endswith("step_00000012")
    assert "snr" not in told
    assert (told["process"], told["nfe"], told["sampler"]) == (repr(sde), 3, "ddim")
    assert not list((trained / "samples").glob("*ddim*trajectory*"))


def test_samples_of_other_weights_lie_beside(cli, trained, samples_of, tmp_path):
    """Of an older checkpoint, of an average whose name has a point, and of another run whose steps have these names."""
    older, newest = sorted((trained / "checkpoints").iterdir())
    average = shutil.copytree(newest, trained / "averages" / "step_00000012_posthoc_0.05")
    foreign = shutil.copytree(newest, tmp_path / "other" / "checkpoints" / newest.name)
    options = (f"--workdir={trained}", "--sampler=ddim", "--config.sampling.seed=7", "--config.sampling.trajectory=1")
    for path in (older, newest, average, foreign):
        cli("--mode=sample", *options, f"--checkpoint={path}").good()
    names = sorted(path.name for path in (trained / "samples").glob("*_ddim_4nfe_seed7*"))
    marked = [re.sub("seed7_[0-9a-f]{6}", "seed7_MARK", name) for name in names]
    ends = (".json", ".npz", ".png", "_trajectory.gif", "_trajectory.png")
    of = ("step_00000010_%s", "step_00000012_%s", "step_00000012_posthoc_0.05_%s", "step_00000012_%s_MARK")
    assert sorted(marked) == sorted(f"{name % 'ddim_4nfe_seed7'}{end}" for name in of for end in ends)
    drawn = [samples_of(trained, (name % "ddim_4nfe_seed7").replace("MARK", "*")) for name in of]
    assert [np.array_equal(x, drawn[1]) for x in drawn] == [False, True, True, True]


def test_a_strip_does_not_outlive_its_samples(cli, trained):
    def strips(*flags):
        cli("--mode=sample", f"--workdir={trained}", "--sampler=ddim", "--config.sampling.seed=9", *flags).good()
        return sorted(path.suffix for path in (trained / "samples").glob("step_00000012_ddim_4nfe_seed9_trajectory.*"))

    assert strips("--config.sampling.trajectory=2") == [".gif", ".png"]
    assert strips("--config.sampling.trajectory=0") == []


@pytest.mark.parametrize(
    ("flags", "unused"),
    [
        (["--sampler=ode", "--config.sampling.grid=karras"], "grid, steps"),
        (["--config.sampling.grid=1,0.5,0.1", "--config.sampling.rho=3.0"], "rho, steps"),
        (["--sampler=ddim", "--config.sampling.order=2"], "order"),
    ],
)
def test_settings_without_effect_are_named(cli, trained, flags, unused):
    out = cli("--mode=sample", f"--workdir={trained}", *flags).good()
    assert f"makes no use of the settings {unused}\n" in out


def test_pictures_on_the_way(cli, tiny):
    cli("--mode=train", "--workdir=run", *tiny, "--config.training.sample_every=5").good()
    assert sorted(path.name for path in Path("run/samples").glob("step_????????.png")) == [
        "step_00000005.png",
        "step_00000010.png",
    ]
