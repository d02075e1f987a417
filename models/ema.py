"""Moving averages of a model's weights: what is sampled and scored.

Each is the recursion  average <- average + (1 - d_n) (weights - average)  at its n-th update, in the weights' own
float32; they differ in d_n.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import nn

from models.posthoc_ema import gamma_of

Model = TypeVar("Model", bound=nn.Module)


class Average(ABC, Generic[Model]):
    """A moving average that begins at the present weights of a model.

    Args:
        model: the model to follow.

    Attributes:
        model: the averaged model, in evaluation mode, ready for use.
        updates: number of updates so far.
    """

    def __init__(self, model: Model) -> None:
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @abstractmethod
    def decay_at(self, n: int) -> float:
        """d_n, the share of the average that the n-th update (1 is the first) leaves."""

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of ``model``; buffers are copied."""
        self.updates += 1
        weight = 1 - self.decay_at(self.updates)
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for ours, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)


class EMA(Average[Model]):
    """Exponential: d_n = min(decay, (1 + n) / (10 + n)).

    The warm-up lets an average that has just begun follow quickly (arXiv 2006.11239's code base and its successors).

    Args:
        model: the model to follow.
        decay: limit of d_n, in [0, 1).
    """

    def __init__(self, model: Model, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay is {decay}; it must lie in [0, 1)")
        self.decay = decay
        super().__init__(model)

    def decay_at(self, n: int) -> float:
        """See ``Average``."""
        return min(self.decay, (1 + n) / (10 + n))


class PowerEMA(Average[Model]):
    """Power function: d_n = (1 - 1 / n)^(gamma + 1) (arXiv 2312.02696, equation 3).

    After n updates the weights of update k count (k / n)^(gamma + 1) - ((k - 1) / n)^(gamma + 1), the integral of the
    profile of ``Profile`` over ((k - 1) / n, k / n]; those from before the first count nothing. The average is as long
    as the run is: its width is a share of the time so far.

    Args:
        model: the model to follow.
        std: width sigma_rel, standard deviation of the profile in units of the time so far; see ``gamma_of``.
    """

    def __init__(self, model: Model, std: float = 0.05) -> None:
        self.gamma = gamma_of(std)
        super().__init__(model)

    def decay_at(self, n: int) -> float:
        """See ``Average``."""
        return (1 - 1 / n) ** (self.gamma + 1)


POWER = "power"
"""What the name of an average by a power function begins with."""


def parse_averages(text: str) -> dict[str, Callable[[nn.Module], Average]]:
    """What builds the averages that a text names, such as "0.999,power:0.05,power:0.1".

    Args:
        text: decays of ``EMA``, and widths of ``PowerEMA``, divided by commas; "" for none.

    Returns:
        Name -> function of the model; names are such as "ema_0.999" and "ema_power_0.05".

    Raises:
        ValueError: the text is not like that, a number is out of range, or an average stands there twice.
    """
    found: dict[str, Callable[[nn.Module], Average]] = {}
    for word in (part.strip() for part in text.split(",")) if text.strip() else ():
        kind, _, number = word.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if kind not in ("", POWER) or not 0 <= value < 1:
            raise ValueError(
                f"{word!r} is no average; give decays in [0, 1) and widths as power:WIDTH, divided by commas, such as "
                "'0.999,power:0.05,power:0.1'"
            )
        name = f"ema_{POWER}_{value!r}" if kind else f"ema_{value!r}"
        if name in found:
            raise ValueError(f"the average {word!r} stands twice in {text!r}; once is enough")
        if kind:
            gamma_of(value)
        found[name] = partial(PowerEMA, std=value) if kind else partial(EMA, decay=value)
    return found


def power_std(name: str) -> float | None:
    """The width of an average by a power function, from its name in ``parse_averages``; None for other averages."""
    head = f"ema_{POWER}_"
    return float(name.removeprefix(head)) if name.startswith(head) else None
