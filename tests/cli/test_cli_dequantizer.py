"""--mode=dequantizer: it trains beside the score model, and the likelihood uses it."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data import Dequantized, get_dataset
from evaluation import ODEEstimator, evaluate_likelihood
from modes.dequantizer_settings import trained_dequantizer
from training import RunFolder

VARIATIONAL = "--config.likelihood.dequantization=variational"
MODEL_FILES = ("checkpoints", "samples", "metrics.jsonl")


@pytest.fixture
def dequantizer(cli):
    """(run, settings of the section ``dequantizer``, other arguments) -> what comes of it."""

    def call(folder, *arguments, **settings):
        flags = [f"--config.dequantizer.{key}={value}" for key, value in settings.items()]
        return cli("--mode=dequantizer", f"--workdir={folder}", *arguments, *flags)

    return call


def test_it_trains_and_the_likelihood_uses_it(dequantizer, cli, digits, bytes_of, model_of, report_of, steps_of):
    before = {name: data for name, data in bytes_of(digits).items() if name.startswith(MODEL_FILES)}
    out = dequantizer(digits, learning_rate=0.03).good()
    checkpoints = digits / "dequantizer" / "checkpoints"
    assert f"finished after step 3 of 3: {checkpoints}\n" in out
    assert f"python run_lib.py --mode=likelihood --workdir={digits} {VARIATIONAL}\n" in out
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000003"]
    assert steps_of(digits / "dequantizer") == [3]
    assert {name: data for name, data in bytes_of(digits).items() if name.startswith(MODEL_FILES)} == before

    scoring = ["--mode=likelihood", f"--workdir={digits}"]
    cli(*scoring).good()
    uniform, path = report_of(digits)
    path.unlink()
    cli(*scoring, VARIATIONAL, "--config.likelihood.estimate=all").good()
    config, sde, model = model_of(digits)
    data = get_dataset("digits", "test")
    network = trained_dequantizer(config, data, RunFolder(digits), torch.device("cpu"))
    averaged = load_file(checkpoints / "step_00000003" / "ema.safetensors")
    assert all(torch.equal(averaged[key], value) for key, value in network.state_dict().items())
    assert not all(
        torch.equal(averaged[key], value)
        for key, value in load_file(checkpoints / "step_00000003" / "model.safetensors").items()
    )
    estimator = ODEEstimator(
        sde,
        lambda x, t, y: model(x, t),
        lambda v, u: Dequantized(*network(v, u)),
        options={"method": "euler", "steps": 3},
    )
    with torch.no_grad():
        expected = evaluate_likelihood(estimator, data, num_images=3, batch_size=100)[0]
    assert report_of(digits)[0]["values"] == expected.values != uniform["values"]
    assert len({report_of(digits, name)[0]["bits_per_dim"] for name in ("ode", "elbo", "ddpm")}) == 3


def test_it_goes_on(dequantizer, digits):
    dequantizer(digits).good()
    out = dequantizer(digits, steps=5).good()
    assert f"continuing the dequantiser of {digits} from step 3\n" in out
    assert "step 5/5: loss " in out
    assert "finished after step 5 of 5" in out
    assert [path.name for path in (digits / "dequantizer" / "checkpoints").iterdir()] == ["step_00000005"]
    again = dequantizer(digits, steps=5).good()
    assert "has 5 steps already, of 5 asked for; raise dequantizer.steps" in again
    assert "loss" not in again


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_signal_saves_the_step_and_names_the_command_that_goes_on(dequantizer, launcher, digits, tmp_path):
    log, metrics = tmp_path / "log", digits / "dequantizer" / "metrics.jsonl"
    endless = ["--config.dequantizer.steps=1000000", "--config.training.log_every=1"]
    pid = launcher.start(log, "--mode=dequantizer", f"--workdir={digits}", *endless)
    while not metrics.exists() or not metrics.read_text():
        assert Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z", log.read_text()
        time.sleep(0.001)
    os.kill(pid, signal.SIGINT)
    assert launcher.wait(pid) == 0
    again = f"; all is saved. To go on: python run_lib.py --mode=dequantizer --workdir={digits}\n"
    step = int(re.search(r"stopped by SIGINT after step (\d+) of 1000000" + re.escape(again), log.read_text())[1])
    assert f"from step {step}\n" in dequantizer(digits, steps=step + 1).good()


def test_a_later_call_knows_its_size(dequantizer, cli, digits):
    dequantizer(digits, channels=8, layers=3).good()
    assert json.loads((digits / "config.json").read_text())["dequantizer"]["channels"] == 8
    assert "bits/dim" in cli("--mode=likelihood", f"--workdir={digits}", VARIATIONAL).good()
    fault = dequantizer(digits, channels=4).fault()
    assert "is of another architecture" in fault
    assert json.loads((digits / "config.json").read_text())["dequantizer"]["channels"] == 8


def test_a_newer_one_is_not_mixed_with_parts_of_an_older(dequantizer, cli, digits, report_of, monkeypatch):
    dequantizer(digits, learning_rate=0.03).good()
    scoring = ["--mode=likelihood", f"--workdir={digits}", VARIATIONAL, "--config.likelihood.batch_size=1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    cli(*scoring).good()  # its share of the images
    assert len(list((digits / "likelihood").glob(".*/*.npz"))) == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    dequantizer(digits, steps=6, learning_rate=0.03).good()
    cli(*scoring).good()
    mixed = report_of(digits)[0]["values"]
    shutil.rmtree(digits / "likelihood")
    cli(*scoring).good()
    assert report_of(digits)[0]["values"] == mixed


def test_a_conditional_model_has_one_too(dequantizer, cli, labelled):
    dequantizer(labelled).good()
    assert "ode: " in cli("--mode=likelihood", f"--workdir={labelled}", VARIATIONAL).good()


def test_without_it(cli, digits, bytes_of):
    before = bytes_of(digits)
    for mode in (["--mode=likelihood"], ["--mode=likelihood", "--dry_run"], ["--mode=train"]):
        fault = cli(*mode, f"--workdir={digits}", VARIATIONAL).fault()
        assert fault.startswith(f"no dequantiser in {digits}/dequantizer/checkpoints; train one first, by --mode=deq")
    assert bytes_of(digits) == before
    cli("--mode=dequantizer", f"--workdir={digits}", VARIATIONAL).good()  # which needs none
    assert "ode: " in cli("--mode=likelihood", f"--workdir={digits}", VARIATIONAL).good()


def test_a_damaged_one(dequantizer, cli, digits):
    dequantizer(digits).good()
    path = digits / "dequantizer" / "checkpoints" / "step_00000003" / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    for call in (["--mode=likelihood", VARIATIONAL], ["--mode=dequantizer"]):
        fault = cli(*call, f"--workdir={digits}").fault()
        assert fault.startswith(f"checkpoint {path.parent} is damaged: ema.safetensors has ")


WRONG = {
    "steps=0": "config.dequantizer.steps is 0; it must be at least 1",
    "batch_size=0": "config.dequantizer.batch_size is 0; it must be at least 1",
    "learning_rate=0": "config.dequantizer.learning_rate is 0.0; it must be above 0",
    "learning_rate=nan": "config.dequantizer.learning_rate is nan; it must be finite",
    "ema_decay=1": "config.dequantizer.ema_decay is 1.0; it must lie in [0, 1)",
    "channels=3": "config.dequantizer.channels is 3; it must be at least 4",
    "layers=1": "config.dequantizer.layers is 1; it must be at least 2",
    "steps=1e3": "dequantizer.steps is '1e3'; it takes a whole number",
}


@pytest.mark.parametrize(("setting", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_setting(cli, digits, bytes_of, setting, message):
    before = bytes_of(digits)
    assert message in cli("--mode=dequantizer", f"--workdir={digits}", f"--config.dequantizer.{setting}").fault()
    assert bytes_of(digits) == before


def test_points_have_no_levels(dequantizer, trained, bytes_of):
    before = bytes_of(trained)
    assert "'toy/checkerboard' has no levels to dequantise" in dequantizer(trained).fault()
    assert bytes_of(trained) == before


def test_a_run_that_does_not_exist(dequantizer):
    assert "no checkpoint in runs/digits/checkpoints; train first" in dequantizer("runs/digits").fault()
    assert not Path("runs").exists()
