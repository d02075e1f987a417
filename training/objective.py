"""What training minimises: a denoising score-matching loss on samples, their labels and their random numbers."""

from collections.abc import Callable
from dataclasses import astuple
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from data import UNKNOWN, Augmentation, StepDraws, hide_labels
from models import ScoreModel
from sde_lib import (
    SDE,
    TIME_LAWS,
    WEIGHTINGS,
    DDPMSchedule,
    ddpm_loss,
    ddpm_schedule,
    dsm_loss,
    lookup,
    relative_density,
    sample_time,
)
from sde_lib.losses import EpsFn
from training.gradient import LossFn

Objective = Callable[[EpsFn, Tensor, StepDraws], Tensor]
"""(eps_fn, x0: (b, *), random numbers) -> losses (b,)."""


def training_loss(
    objective: Objective,
    *,
    augmentation: Augmentation | None = None,
    conditional: bool = False,
    label_dropout: float = 0.0,
    attribute_dropout: float = 0.0,
) -> LossFn[ScoreModel]:
    """The objective on data that are augmented, with some labels hidden.

    Args:
        objective: losses of a batch.
        augmentation: what is done to the images, which the network is told; None for nothing.
        conditional: the network is told the labels.
        label_dropout: share of the samples whose label is hidden; see ``hide_labels``.
        attribute_dropout: share of the samples of which only some attributes are told.
    """

    def loss_fn(model: ScoreModel, x0: Tensor, y: Tensor | None, draws: StepDraws) -> Tensor:
        told: dict[str, Any] = {"y": None}
        if augmentation is not None:
            x0, told["augment"] = augmentation(x0, draws)
        if y is not None and conditional:
            whole = y.new_zeros(draws.batch, *y.shape[1:])
            masked = draws.rows("labels", lambda g: hide_labels(whole, label_dropout, attribute_dropout, g))
            told["y"] = torch.where(masked == UNKNOWN, UNKNOWN, y)
        return objective(partial(model.eps, **told), x0, draws)

    return loss_fn


def continuous(sde: SDE, *, weighting: str, time_law: str, low_discrepancy: bool, importance: bool) -> Objective:
    """Score matching at times drawn by a law; the options are those of ``dsm_loss``.

    Raises:
        ValueError: unknown names.
    """
    lookup(WEIGHTINGS, weighting, "training.weighting")
    lookup(TIME_LAWS, time_law, "training.time_law")

    def objective(eps_fn: EpsFn, x0: Tensor, draws: StepDraws) -> Tensor:
        def times(generator: torch.Generator) -> Tensor:
            return sample_time(
                sde,
                draws.batch,
                law=time_law,
                low_discrepancy=low_discrepancy,
                generator=generator,
                device=x0.device,
                dtype=x0.dtype,
            )

        t = draws.rows("time", times)
        eps = draws.normal_like("noise", x0)
        loss = dsm_loss(sde, eps_fn, x0, weighting=weighting, t=t, eps=eps)
        return loss / relative_density(sde, time_law, t) if importance else loss

    return objective


def chain(sde: SDE, steps: int) -> Objective:
    """DDPM's L_simple on the steps of its chain; see ``ddpm_loss``.

    Raises:
        TypeError: the process has no such chain.
    """
    schedule = ddpm_schedule(sde, steps)

    @cache
    def there(device: torch.device) -> DDPMSchedule:
        """The schedule on the device: no step waits until it gets there."""
        return DDPMSchedule(*(values.to(device) for values in astuple(schedule)))

    def objective(eps_fn: EpsFn, x0: Tensor, draws: StepDraws) -> Tensor:
        def indices(generator: torch.Generator) -> Tensor:
            return torch.randint(schedule.steps, (draws.batch,), generator=generator, device=x0.device)

        index = draws.rows("time", indices)
        return ddpm_loss(there(x0.device), eps_fn, x0, index=index, eps=draws.normal_like("noise", x0))

    return objective
