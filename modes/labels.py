"""What the samples of a conditional model are to show, and how strongly."""

from collections.abc import Callable

import torch
from ml_collections import ConfigDict
from torch import Tensor

from data import UNKNOWN, Dataset, parse_labels
from evaluation.estimators import ModelFn
from guidance import ClassifierFreeGuidance
from models import ScoreModel
from sde_lib import SDE


def told_labels(config: ConfigDict, fn: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> ModelFn:
    """A function (x, t, labels or None) of the score model, which is told of the labels only where it knows them."""
    conditional = config.model.conditional

    def told(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return fn(x, t, y if conditional else None)

    return told


def sample_labels(config: ConfigDict, dataset: Dataset, n: int) -> Tensor | None:
    """Labels (n,) or (n, A) by ``sampling.labels``; None for an unconditional model.

    Without it classes take turns, and attributes are those of the first training samples (nothing known where there are
    no data).

    Raises:
        ValueError: labels for an unconditional model, or such as the data do not have.
    """
    text = config.sampling.labels
    if not config.model.conditional:
        if text:
            raise ValueError(
                f"sampling.labels is {text!r}, but the model is unconditional; train one with model.conditional=True"
            )
        return None
    if text:
        kinds = {"num_classes": dataset.num_classes, "num_attributes": dataset.num_attributes}
        return parse_labels(text, n, **kinds, names=dataset.label_names)
    if dataset.num_classes:
        return torch.arange(n) % dataset.num_classes
    if not len(dataset):
        return torch.full((n, dataset.num_attributes), UNKNOWN)
    return dataset.fetch([k % len(dataset) for k in range(n)]).y


def guided(config: ConfigDict, sde: SDE, model: ScoreModel) -> ScoreModel | ClassifierFreeGuidance:
    """The score (x, t, y=...) that is sampled: the model's own, or one with classifier-free guidance.

    Raises:
        ValueError: guidance of a model that has no conditions, or never learned to do without them.
    """
    sampling = config.sampling
    if sampling.guidance == 1:
        return model
    if not config.model.conditional:
        raise ValueError(
            f"sampling.guidance is {sampling.guidance:g}, but the model is unconditional; train one with "
            "model.conditional=True"
        )
    if not config.training.label_dropout:
        raise ValueError(
            f"sampling.guidance is {sampling.guidance:g}, but with training.label_dropout=0 the model never learned to "
            "do without a label; train with such as 0.1"
        )
    high = {} if sampling.guidance_high is None else {"high": sampling.guidance_high}
    return ClassifierFreeGuidance(sde, model, sampling.guidance, low=sampling.guidance_low, **high)
