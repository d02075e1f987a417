"""Every mode on a small run, ready to be disturbed."""

import functools
import shutil

import numpy as np
import pytest
from command_line import DIGITS, run_cli
from injection import AVERAGES, SCORES, TRAINING, WITHOUT_FIDELITY, Subject

ON_DIGITS = {
    "sample": ["--config.sampling.num_images=4", "--config.sampling.steps=12", "--config.sampling.trajectory=3"],
    "likelihood": [*SCORES, "--config.likelihood.estimate=all", "--config.likelihood.codes=True"],
    "doctor": ["--config.training.steps=2000"],
    "edit": ["--image=3", "--mask=left", "--config.sampling.trajectory=2"],
}
"""Mode -> arguments, where the mode alone does not show all that it writes."""
EVALUATING = [
    "--config.data.cache=",  # what is made of the data lies in the run
    "--config.evaluation.num_images=7",
    "--config.evaluation.draws=2",
    "--config.evaluation.reference_images=70",
    "--config.evaluation.compare=deis:2,heun:2",
]


@pytest.fixture(autouse=True)
def _elsewhere(elsewhere):
    """Every test works in an empty folder."""


@pytest.fixture(scope="session")
def exported(_trained_digits, tmp_path_factory):
    """A run of images, and its weights in the layout of diffusers."""
    folder = shutil.copytree(_trained_digits, tmp_path_factory.mktemp("exported") / "run")
    run_cli("--mode=export", f"--workdir={folder}").good()
    return folder, folder / "export" / "step_00000004-diffusers"


@pytest.fixture(scope="session")
def averaged(tmp_path_factory):
    """A run of images with several averages and snapshots of them."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    run_cli("--mode=train", f"--workdir={folder}", *DIGITS, *AVERAGES, "--config.training.ema_snapshot_every=2").good()
    return folder


@pytest.fixture(scope="session")
def subject(launcher, tmp_path_factory, _trained, _trained_digits, exported, averaged):
    """Mode -> ``Subject``."""

    @functools.cache
    def of(mode):
        scratch = tmp_path_factory.mktemp(mode)
        if mode == "train":
            np.save(scratch / "points.npy", np.random.default_rng(0).normal(size=(110, 2)).astype(np.float32))
            root = f"--config.data.root={scratch / 'points.npy'}"
            return Subject(launcher, scratch, None, "--mode=train", *TRAINING, root, first=WITHOUT_FIDELITY)
        if mode == "import":
            return Subject(launcher, scratch, None, "--mode=import", f"--source={exported[1]}")
        if mode == "evaluate":
            return Subject(launcher, scratch, _trained, "--mode=evaluate", *EVALUATING)
        base = averaged if mode == "average" else _trained_digits
        return Subject(launcher, scratch, base, f"--mode={mode}", *ON_DIGITS.get(mode, []))

    return of
