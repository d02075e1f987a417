"""The loss on held-out data while a run trains."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from data import Dataset
from evaluation import HeldOutLoss, heldout_loss
from models import ScoreModel
from modes.labels import told_labels
from modes.likelihood_settings import warn_of_fewer
from modes.out_of_memory import passing_memory
from modes.passes import heldout_pass
from modes.run import Run
from training import Processes, builders
from training.processes import ALONE


def heldout_measure(
    run: Run, averaged: Callable[[], ScoreModel], together: Processes
) -> Callable[[int], dict[str, float]] | None:
    """What computes, prints and returns the loss of the averaged model after a step; None where no data are held out.

    It is the loss that is trained (L_simple of a chain: that of uniform times), without augmentation, flips and hidden
    labels, on the first images of the split that is scored.
    """
    settings, scoring = run.config.training, run.config.likelihood
    if not settings.heldout_every:
        return None
    if scoring.split == "train":
        if together.first:
            print("no loss on held-out data: likelihood.split is train (training.heldout_every=0 leaves out this line)")
        return None
    dataset = builders.build_dataset(run.config, scoring.split)
    if together.first and settings.heldout_images != run.default.training.heldout_images:
        warn_of_fewer("training.heldout_images", settings.heldout_images, dataset, scoring.split)

    def measure(step: int) -> dict[str, float]:
        found = heldout(run, averaged(), dataset, settings.heldout_images, together)
        if together.first:
            with tqdm.external_write_mode():  # the bar goes on below
                print(f"step {step}: {found}", flush=True)
        return found.scalars()

    return measure


def heldout(run: Run, model: ScoreModel, dataset: Dataset, num_images: int, together: Processes = ALONE) -> HeldOutLoss:
    """The loss that is trained, on the first images of a data set; see ``heldout_loss``."""
    config, scoring = run.config, run.config.likelihood
    with passing_memory(run, model, heldout_pass(config, min(num_images or len(dataset), len(dataset)))):
        return heldout_loss(
            run.experiment.sde,
            told_labels(config, model.eps),
            dataset,
            num_images=num_images,
            **trained_loss(config.training),
            dequantize=config.data.dequantize,
            batch_size=scoring.batch_size,
            seed=scoring.seed,
            device=run.experiment.device,
            rank=together.rank,
            world_size=together.count,
            total=together.total if together.count > 1 else None,
        )


def trained_loss(settings: ConfigDict) -> dict[str, Any]:
    """The weighting and the law of t of the loss that these settings of training ask for."""
    if settings.loss == "ddpm":
        return {"weighting": "uniform", "time_law": "uniform"}
    return {"weighting": settings.weighting, "time_law": "uniform" if settings.importance else settings.time_law}
