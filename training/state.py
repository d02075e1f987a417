"""What training carries from step to step, and how it becomes a checkpoint and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import EMA, ScoreModel
from training.checkpoint import CheckpointError, Checkpoints, load_checkpoint, load_weights
from training.sharding import is_sharded, like, local, whole


class TrainState:
    """A model, its optimizer, its moving average, and the number of finished steps.

    Randomness needs no place here: it is a function of (seed, step, rank).

    Args:
        model: the score model.
        optimizer: over the model's parameters.
        ema: the moving average of the model.
    """

    def __init__(self, model: ScoreModel, optimizer: torch.optim.Optimizer, ema: EMA) -> None:
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.step = 0

    def save(self, checkpoints: Checkpoints) -> Path:
        """Write a checkpoint of the present step."""
        return checkpoints.save(self.step, *self.content())

    def content(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """What a checkpoint holds: (file name -> tensors, plain values)."""
        tensors = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self._optimizer_tensors(),
        }
        return tensors, {"step": self.step, "ema_updates": self.ema.updates}

    def finite(self) -> bool:
        """Whether all weights, averages and moments are numbers (of shares, those here); it waits for a GPU."""
        weights = [*self.model.parameters(), *self.ema.model.parameters(), *self._optimizer_tensors().values()]
        return bool(torch.stack([local(values).isfinite().all().cpu() for values in weights]).all())

    @property
    def sharded(self) -> bool:
        """Whether this process has a share of it only."""
        return is_sharded(self.model)

    def averaged(self, blank: Callable[[], ScoreModel]) -> ScoreModel:
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
        load_weights(self.model, tensors["model"], path)
        load_weights(self.ema.model, tensors["ema"], path)
        self._load_optimizer(tensors["optimizer"], path)
        self.step, self.ema.updates = values["step"], values["ema_updates"]

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
