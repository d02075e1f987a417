"""Held-out data during training: the figures are those of the averaged weights on the test split, and cost no bits."""

import json

import pytest

from data import get_dataset
from evaluation import heldout_loss
from modes.heldout import trained_loss

LOOKING = ["--config.training.heldout_every=2", "--config.training.heldout_images=50", "--config.training.log_every=3"]


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("more", "law"),
    [
        (["--config.training.loss=ddpm"], {"weighting": "uniform", "time_law": "uniform"}),
        (["--config.training.weighting=likelihood"], {"weighting": "likelihood", "time_law": "logistic"}),
        (
            ["--config.training.importance=True", "--config.model.conditional=True", "--config.data.dequantize=False"],
            {"weighting": "uniform", "time_law": "uniform"},
        ),
    ],
)
def test_the_figures_are_those_of_the_average_on_the_test_split(cli, tiny_digits, model_of, tmp_path, more, law):
    folder = tmp_path / "run"
    out = cli(*tiny_digits, "--mode=train", f"--workdir={folder}", *LOOKING, *more).good()
    assert [line["step"] for line in records(folder)] == [2, 3, 4]
    assert ["heldout_loss" in line for line in records(folder)] == [True, False, True]
    config, sde, model = model_of(folder)
    assert trained_loss(config.training) == law

    def eps_fn(x, t, y):
        return model.eps(x, t, y if config.model.conditional else None)

    options = {"num_images": 50, "batch_size": 100, "dequantize": config.data.dequantize, **law}
    expected = heldout_loss(sde, eps_fn, get_dataset("digits", "test"), **options)
    last = {name: value for name, value in records(folder)[-1].items() if name.startswith("heldout")}
    assert last == pytest.approx(expected.scalars(), rel=1e-5)  # a checkpoint has the bits; sums may not
    assert f"step 4: {expected}\n" in out
    assert f"step 4/4: loss {records(folder)[-1]['loss']:.4f}, held-out {expected.loss:.4f}, grad norm " in out


def test_more_images_than_there_are_and_shares_of_one_process_are_noted(cli, tiny):
    asked = ["--config.training.heldout_images=900", "--config.likelihood.num_images=800"]
    shares = "--config.training.parallel=fsdp"
    out = cli(*tiny, "--mode=train", "--workdir=run", "--config.training.steps=1", *asked, shares).good()
    for setting in ("training.heldout_images is 900", "likelihood.num_images is 800"):
        assert f"note: {setting}, but the split 'test' has 100 samples; all of them are taken\n" in out
    assert "note: training.parallel is fsdp, but the only process has a share of all" in out
    likelihood = cli("--mode=likelihood", "--workdir=run", "--config.likelihood.num_images=100").good()
    assert "bits/dim on 100 samples" in likelihood
    assert "note:" not in likelihood


def test_where_no_data_are_held_out_this_is_told_and_nothing_else_changes(cli, tiny, tmp_path):
    silent = cli(*tiny, "--mode=train", f"--workdir={tmp_path / 'a'}", "--config.training.heldout_every=0").good()
    told = cli(*tiny, "--mode=train", f"--workdir={tmp_path / 'b'}", "--config.likelihood.split=train").good()
    assert "held-out" not in silent
    assert "no loss on held-out data: likelihood.split is train" in told
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert [line["step"] for line in records(folder)] == list(range(1, 13))
        assert not any(name.startswith("heldout") for line in records(folder) for name in line)
    weights = [(tmp_path / name / "checkpoints/step_00000012/ema.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
