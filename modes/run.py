"""What every mode works on: a configuration, its run folder, and the objects that it describes."""

import os
import shlex
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ml_collections import ConfigDict

from models import ScoreModel
from models.pretrained import Pretrained
from modes.dequantizer_settings import trained_dequantizer
from modes.labels import guided, sample_labels
from modes.likelihood_settings import check_likelihood, dequantization
from modes.sampler_settings import build_sampler
from training import CheckpointError, RunFolder, builders, load_checkpoint, load_weights
from training.builders import Experiment
from training.checkpoint import step_of
from training.settings import AUTO

SHARED = ("train", "sample", "likelihood", "evaluate")
"""Modes whose work several processes may share."""


@dataclass(frozen=True)
class Run:
    """One call of the command line.

    Attributes:
        config: the resolved configuration.
        default: the documented default.
        folder: the run folder.
        checkpoint: the one asked for; None for the newest.
        place: arguments that lead a later call to this folder; empty where it is the default one.
        rank: this process, of those that share the work.
        world_size: their number.
        local: number of this process on its machine, where there are several.
        own: a digest of the files of the user's own, as they were run; "" where there are none.
        source: the weights of another project, where they are to be imported.
        image: what is to be edited: a file, or the number of a held-out image.
        mask: what of it is made anew: a file, or a region by name.
    """

    config: ConfigDict
    default: ConfigDict
    folder: RunFolder
    checkpoint: str | None = None
    place: tuple[str, ...] = ()
    rank: int = 0
    world_size: int = 1
    local: int | None = None
    own: str = ""
    source: Pretrained | None = None
    image: str | None = None
    mask: str | None = None

    @cached_property
    def experiment(self) -> Experiment:
        """Process, model, training data and device; built when first needed, as a report needs none of them."""
        return builders.build_experiment(self.config, self.local)

    def configured(self, config: ConfigDict) -> "Run":
        """The same run and objects under other settings of what is done with them."""
        other = replace(self, config=config)
        other.__dict__["experiment"] = self.experiment
        return other

    def trained_model(self) -> tuple[ScoreModel, Path]:
        """The averaged weights of a checkpoint, ready for use, and where they come from."""
        self.folder.changes(self.config.to_dict(), fixed=("sde", "model"))
        path = self.folder.checkpoint(self.checkpoint)
        stored = load_checkpoint(path)[0]
        if "ema" not in stored:
            raise CheckpointError(
                f"{path} is a snapshot, of which averages are made: --mode=average --config.averaging.step="
                f"{step_of(path)} makes one that can be used"
            )
        load_weights(self.experiment.model, stored["ema"], path)
        if self.rank == 0:
            print(f"using the averaged weights of {path}", flush=True)
        return self.experiment.model.eval().requires_grad_(False), path

    def command(self, mode: str) -> str:
        """The command for a mode on this run, as it can be typed; the run brings its own configuration."""
        shared = self.world_size > 1 and mode in SHARED
        here = os.environ.get("LOCAL_WORLD_SIZE", self.world_size)
        launcher = ["torchrun", f"--nproc-per-node={here}"] if shared else ["python"]
        return shlex.join([*launcher, sys.argv[0], f"--mode={mode}", *self.place])


def check_evaluation(run: Run, *, scores: bool = False, data: bool = True) -> None:
    """Fail now, and not after the training, on settings that only sampling and likelihood use.

    Args:
        run: what to check.
        scores: whether it is to score data, and so needs what the section ``likelihood`` asks for.
        data: whether it needs data at all.
    """
    config, dataset = run.config, run.experiment.dataset
    if data and not len(dataset):
        raise ValueError(
            f"{run.folder.path} has no data of its own: give some that fit its network, as --config.data.name=folder "
            "--config.data.root=FOLDER (--mode=sample needs none)"
        )
    build_sampler(config, run.experiment.sde)
    sample_labels(config, dataset, 1)
    guided(config, run.experiment.sde, run.experiment.model)
    check_likelihood(config, run.experiment.sde, run.default)
    builders.build_dataset(config, config.likelihood.split)
    if scores and config.likelihood.dequantization:
        if dataset.quantizer is None:
            raise ValueError(f"likelihood.dequantization is set, but {dataset.name!r} has no levels to dequantise")
        if dequantization(config) == "variational":
            trained_dequantizer(config, dataset, run.folder, run.experiment.device)


def describe(run: Run) -> str:
    """One line: what is trained on what, how long, and where it goes."""
    model, dataset = run.experiment.model, run.experiment.dataset
    parameters = sum(p.numel() for p in model.parameters())
    sizes = run.config.training
    data = f"{len(dataset)} training samples of {dataset.name} {dataset.shape}"
    if not len(dataset):
        data, length = f"samples of shape {dataset.shape} and no data", ""
    elif AUTO in (sizes.batch_size, sizes.accumulation):
        length = "batches of a size still to be found, "
    else:
        options = builders.build_options(run.config, dataset)
        length = f"{options.steps} steps of {options.batch_size}, "
        if run.world_size > 1:
            length += f"shared by {run.world_size} processes, "
    return (
        f"{run.config.model.name} of {parameters:,} parameters ({model.precision}, {run.experiment.device}), "
        f"{data}, {run.experiment.sde!r}, {length}run folder {run.folder.path}"
    )
