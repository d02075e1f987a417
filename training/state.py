"""What training carries from step to step, and how it becomes a checkpoint and back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from models import Average, power_std
from models.ema import Model
from training.checkpoint import CheckpointError, Checkpoints, load_checkpoint, load_weights
from training.sharding import is_sharded, like, local, whole


class TrainState(Generic[Model]):
    """A model, its optimizer, its moving averages, and the number of finished steps.

    Randomness needs no place here: it is a function of (seed, step, rank).

    Args:
        model: the score model, or whatever else is trained.
        optimizer: over the model's parameters.
        ema: the moving average that is sampled and scored.
        others: name -> average that is kept beside it; all begin at the same step.

    Attributes:
        step: number of finished steps.
        whole: False while an update is under way.
        averages: name in a checkpoint -> average, ``ema`` and the others.
    """

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer,
        ema: Average[Model],
        others: Mapping[str, Average[Model]] | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.averages = {"ema": ema, **(others or {})}
        self.step = 0
        self.whole = True

    def update_averages(self) -> None:
        """Move all averages towards the present weights."""
        for average in self.averages.values():
            average.update(self.model)

    def save(self, checkpoints: Checkpoints) -> Path:
        """Write a checkpoint of the present step."""
        return checkpoints.save(self.step, *self.content())

    def content(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """What a checkpoint holds: (file name -> tensors, plain values)."""
        tensors = {
            "model": self.model.state_dict(),
            **{name: average.model.state_dict() for name, average in self.averages.items()},
            "optimizer": self._optimizer_tensors(),
        }
        return tensors, self._values()

    def snapshot(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """What is kept of a step for averages of other widths: the averages by power functions, and plain values."""
        averages = {name: average for name, average in self.averages.items() if power_std(name) is not None}
        return {name: average.model.state_dict() for name, average in averages.items()}, self._values()

    def _values(self) -> dict[str, Any]:
        return {"step": self.step, "ema_updates": self.ema.updates}

    def finite(self) -> bool:
        """Whether all weights, averages and moments are numbers (of shares, those here); it waits for a GPU."""
        averaged = (p for average in self.averages.values() for p in average.model.parameters())
        weights = [*self.model.parameters(), *averaged, *self._optimizer_tensors().values()]
        return bool(torch.stack([local(values).isfinite().all().cpu() for values in weights]).all())

    @property
    def sharded(self) -> bool:
        """Whether this process has a share of it only."""
        return is_sharded(self.model)

    def averaged(self, blank: Callable[[], Model]) -> Model:
        """The averaged model, ready for use; all processes must call it.

        Args:
            blank: makes a model for the weights, where those here are shares.
        """
        if not self.sharded:
            return self.ema.model
        model = blank().eval().requires_grad_(False)
        for target, share in zip(model.state_dict().values(), self.ema.model.state_dict().values(), strict=True):
            target.copy_(whole(share))
        return model

    def load(self, path: Path) -> None:
        """Restore everything from a checkpoint, or raise CheckpointError."""
        tensors, values = load_checkpoint(path)
        self._check(tensors, path)
        load_weights(self.model, tensors["model"], path)
        for name, average in self.averages.items():
            load_weights(average.model, tensors[name], path)
            average.updates = values["ema_updates"]
        self._load_optimizer(tensors["optimizer"], path)
        self.step = values["step"]

    def _check(self, tensors: Mapping[str, Any], path: Path) -> None:
        """Raise CheckpointError if something of this state is not in the checkpoint."""
        if "model" not in tensors:
            raise CheckpointError(f"{path} holds averaged weights only; training goes on from one of RUN/checkpoints")
        missing = [name for name in self.averages if name not in tensors]
        if missing:
            raise CheckpointError(
                f"checkpoint {path} has no average {missing[0]}, and averages can only begin with a run; leave "
                "training.averages as it was, or use another --workdir"
            )

    def _names(self) -> list[str]:
        return [name for name, _ in self.model.named_parameters()]

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        moments = self.optimizer.state_dict()["state"]
        names = self._names()
        return {f"{key}/{names[i]}": value for i, entry in moments.items() for key, value in entry.items()}

    def _load_optimizer(self, tensors: dict[str, Tensor], path: Path) -> None:
        index = {name: i for i, name in enumerate(self._names())}
        moments: dict[int, dict[str, Any]] = {}
        weights = dict(self.model.named_parameters())
        for name, value in tensors.items():
            key, _, parameter = name.partition("/")
            if parameter not in index:
                raise CheckpointError(
                    f"checkpoint {path}: its optimizer knows {parameter}, which the model does not have"
                )
            own = weights[parameter]
            if value.shape == own.shape:  # laid out like the weight, as the fused optimizer takes for granted
                value = like(own.detach(), value)
            moments.setdefault(index[parameter], {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
