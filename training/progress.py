"""What a run tells while it runs: the bar or a line now and then, the records, and whether all is still finite."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import TracebackType

import torch
from torch import Tensor
from tqdm import tqdm

from training.flops import quantity
from training.metrics import Metrics
from training.processes import Processes

NOTHING: Mapping[str, float] = {}


class DivergenceError(RuntimeError):
    """The loss, its gradient or the weights are no longer finite."""


def diverged(what: str) -> DivergenceError:
    """The error for what is not finite, with likely causes."""
    return DivergenceError(
        f"{what}. Likely causes: a learning rate that is too high (lower training.learning_rate, lengthen "
        "training.warmup_steps), no gradient clipping (training.grad_clip), the likelihood weighting at small t, or "
        "bad values in the data. The last checkpoint is from before and is kept"
    )


class Progress:
    """Losses since the last record, summed on the device, so that no step waits for it; use it as a context.

    Args:
        start: steps that are done.
        steps: in all.
        batch_size: samples of a step, over all processes.
        device: where the losses are.
        together: the processes that share the work; the first one tells.
        metrics: where records go; None for nowhere.
        flops: counts the operations of training on one sample, when they are first told; None for not known.
        time_limit: minutes after which training stops; 0 for none.
    """

    def __init__(
        self,
        start: int,
        steps: int,
        batch_size: int,
        *,
        device: torch.device | str,
        together: Processes,
        metrics: Metrics | None,
        flops: Callable[[], int] | None = None,
        time_limit: float = 0.0,
    ) -> None:
        self.start, self.steps, self.batch_size = start, steps, batch_size
        self.together, self.metrics = together, metrics
        self.flops, self.time_limit = flops and cache(flops), time_limit
        self.heldout: float | None = None
        self.began = time.monotonic()
        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)  # 0: none
        self.bar = tqdm(total=steps, initial=start, unit="step", disable=None if together.first else True)
        self._reset()

    def _reset(self) -> None:
        self.loss = torch.zeros_like(self.first_bad, dtype=torch.float32)
        self.norm = torch.zeros_like(self.loss)
        self.count = 0
        self.since = time.monotonic()

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Take the loss and the gradient's norm of a step, which may still be under way."""
        bad = (self.first_bad == 0) & ~(loss.isfinite() & norm.isfinite())
        self.first_bad = torch.where(bad, step, self.first_bad)
        self.loss, self.norm, self.count = self.loss + loss, self.norm + norm, self.count + 1
        self.bar.update()

    def finite(self) -> bool:
        """Whether all was finite until now; it waits for the device."""
        return int(self.first_bad) == 0

    def check(self) -> None:
        """Raise DivergenceError if any step since the start was not finite."""
        if not self.finite():
            raise diverged(f"the loss or its gradient is not finite at step {int(self.first_bad)}")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Context for what is no training, done with a network that is checked; its time counts in no speed."""
        self.check()
        began = time.monotonic()
        yield
        self.since += time.monotonic() - began

    def record(self, step: int, learning_rate: float, heldout: Mapping[str, float] = NOTHING) -> None:
        """Tell of the steps since the last record, and what was measured on held-out data after the last of them."""
        self.check()
        loss = float(self.together.mean(self.loss)) / self.count
        speed = self.count * self.batch_size / max(time.monotonic() - self.since, 1e-9)
        values = {
            "loss": loss,
            "grad_norm": float(self.norm) / self.count,
            "learning_rate": learning_rate,
            "images_per_second": speed,
            **({"flops_per_second": speed * self.flops()} if self.flops else {}),
            "seconds_to_go": self._seconds_to_go(step),
        }
        if self.metrics is not None:
            self.metrics.log(step, **values, **heldout)
        self.heldout = heldout.get("heldout_loss", self.heldout)
        self._tell(step, values)
        self._reset()

    def _seconds_to_go(self, step: int) -> float:
        """By the pace so far, all included, until the last step or the time limit."""
        spent = time.monotonic() - self.began
        left = spent / (step - self.start) * (self.steps - step)
        return max(0.0, min(left, 60 * self.time_limit - spent)) if self.time_limit else left

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        speed = values["images_per_second"]
        parts = [f"loss {values['loss']:.4f}"]
        if self.heldout is not None:
            parts.append(f"held-out {self.heldout:.4f}")
        parts += [f"grad norm {values['grad_norm']:.2g}", f"lr {values['learning_rate']:.2g}"]
        parts.append(f"{speed:.3g} samples/s" if speed < 100 else f"{speed:.0f} samples/s")
        if self.flops:
            parts.append(quantity(values["flops_per_second"], "FLOP/s"))
        self.bar.set_postfix_str(", ".join(parts))
        if self.bar.disable and self.together.first:  # no terminal: a line instead of a bar
            parts.append(f"{duration(values['seconds_to_go'])} to go")
            print(f"step {step}/{self.steps}: {', '.join(parts)}", flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()


def duration(seconds: float) -> str:
    """In two units at most: "45 s", "3 min 5 s", "2 h 10 min", "3 d 4 h"."""
    whole = round(seconds)
    units = [("d", whole // 86400), ("h", whole // 3600 % 24), ("min", whole // 60 % 60), ("s", whole % 60)]
    first = next((place for place, (_, count) in enumerate(units) if count), len(units) - 1)
    shown = [f"{count} {name}" for name, count in units[first : first + 2] if count]
    return " ".join(shown) or "0 s"
