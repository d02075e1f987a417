"""What tests of the command line look at: models, samples and reports of a run."""

import json

import numpy as np
import pytest
import torch

from configs import stored
from training import builders, load_checkpoint, load_weights


@pytest.fixture(autouse=True)
def _elsewhere(elsewhere):
    """Every test works in an empty folder."""


def trained_model(folder, part="ema"):
    """(configuration, process, model) of a run, built without the command line."""
    config = stored.get_config(str(folder / "config.json"))
    sde = builders.build_sde(config)
    model = builders.build_model(config, builders.build_dataset(config, "train"), torch.device("cpu")).eval()
    path = max((folder / "checkpoints").iterdir())
    load_weights(model, load_checkpoint(path)[0][part], path)
    return config, sde, model


def samples(folder, pattern="*"):
    """The only array of samples of a run whose name fits."""
    (path,) = (folder / "samples").glob(f"{pattern}.npz")
    return np.load(path)["samples"]


def report(folder, estimate="ode", split="test"):
    """The only result of an estimate, and where it lies."""
    (path,) = (folder / "likelihood").glob(f"step_*_{split}_{estimate}_*.json")
    return json.loads(path.read_text()), path


@pytest.fixture(scope="session")
def report_of():
    return report


@pytest.fixture(scope="session")
def model_of():
    return trained_model


@pytest.fixture(scope="session")
def samples_of():
    return samples
