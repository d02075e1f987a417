"""The training loop: loss, gradient, step, average; log, checkpoint and leave in good order."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from data import Dataset, StepDraws, derive_seed, train_batches
from models import ScoreModel
from training.checkpoint import Checkpoints
from training.interrupt import Interruption
from training.metrics import Metrics
from training.processes import ALONE, Processes
from training.saver import Saver
from training.sharding import whole
from training.state import TrainState

LossFn = Callable[[ScoreModel, Tensor, Tensor | None, StepDraws], Tensor]
"""(model, x0: (b, *), labels (b, *) or None, their random numbers) -> losses (b,)."""


class DivergenceError(RuntimeError):
    """The loss, its gradient or the weights are no longer finite."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        steps: optimizer steps in all.
        batch_size: samples in one optimizer step.
        accumulation: parts into which a batch is cut to save memory; must divide it.
        learning_rate: peak of the schedule.
        warmup_steps: steps over which the rate rises linearly.
        decay: what follows: "none", or "cosine" or "linear" to 0 at the last step.
        grad_clip: largest norm of the gradient; 0 for none.
        seed: of all randomness in training.
        dequantize: train on levels made uniform in their bin.
        flip: mirror images at random.
        workers: threads that load data.
        log_every: steps between records.
        checkpoint_every: steps between checkpoints (one more at the end).
        sample_every: steps between sample pictures; 0 for none.
        time_limit: minutes after which training saves and stops; 0 for none.
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    learning_rate: float = 2e-4
    warmup_steps: int = 0
    decay: str = "none"
    grad_clip: float = 1.0
    seed: int = 0
    dequantize: bool = False
    flip: bool = False
    workers: int = 0
    log_every: int = 100
    checkpoint_every: int = 1000
    sample_every: int = 0
    time_limit: float = 0.0

    def __post_init__(self) -> None:
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(f"a batch of {self.batch_size} cannot be cut into {self.accumulation} equal parts")
        if self.decay not in DECAYS:
            raise ValueError(f"unknown decay {self.decay!r}; choose from {', '.join(map(repr, DECAYS))}")


DECAYS: dict[str, Callable[[float], float]] = {
    "none": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
}
"""Name -> factor of the learning rate at a share of the run."""


def learning_rate(options: TrainOptions, step: int) -> float:
    """The rate of a step (0 is the first): linear warm-up, then the decay."""
    warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    return options.learning_rate * warm * DECAYS[options.decay](min(1.0, step / options.steps))


def train(
    state: TrainState,
    loss_fn: LossFn,
    dataset: Dataset,
    options: TrainOptions,
    checkpoints: Checkpoints,
    metrics: Metrics | None,
    *,
    device: torch.device | str = "cpu",
    on_sample: Callable[[int], None] | None = None,
    together: Processes = ALONE,
) -> str:
    """Train from ``state.step`` to ``options.steps``.

    Every random number is a function of (seed, step, place in the batch), so a run that was cut off and resumed gives
    the same weights, to the bit, as one that was not; and several processes, each with its share of every batch, give
    those of one within rounding (but for dropout, which each of them draws for itself).

    Args:
        state: what is trained; changed in place.
        loss_fn: losses of a batch.
        dataset: the training split.
        options: see ``TrainOptions``.
        checkpoints: where the state is saved.
        metrics: where the loss is recorded; None for nowhere.
        device: device of the model.
        on_sample: called with the step every ``sample_every`` steps, on every process.
        together: the processes that share the work; the first one writes.

    Returns:
        Why it ended: "finished", "time limit", or the name of a signal.

    Raises:
        DivergenceError: loss, gradient or weights are not finite; the last good checkpoint stays.
        ValueError: the batch cannot be shared evenly.
    """
    if options.batch_size % (together.count * options.accumulation):
        raise ValueError(
            f"a batch of {options.batch_size} cannot be shared by {together.count} processes in {options.accumulation} "
            f"equal parts each; use a multiple of {together.count * options.accumulation}"
        )
    started = time.monotonic()
    saved = state.step
    window = _Window(device, together)
    model = together.parallel(state.model)
    batches = train_batches(
        dataset,
        options.batch_size,
        seed=options.seed,
        start_step=state.step,
        rank=together.rank,
        world_size=together.count,
        dequantize=options.dequantize,
        flip=options.flip,
        workers=options.workers,
    )
    bar = tqdm(total=options.steps, initial=state.step, unit="step", disable=None if together.first else True)
    reason, between = REASONS[0], True  # between: not in the middle of a step
    with Interruption() as interruption, bar, Saver(checkpoints if together.first else None) as saver:
        try:
            while state.step < options.steps:
                batch = next(batches)
                between = False
                x0, y = batch.x.to(device), _move(batch.y, device)
                window.add(state.step + 1, *_step(state, model, loss_fn, x0, y, options, together))
                state.step += 1
                between = True
                bar.update()
                last = state.step == options.steps
                if state.step % options.log_every == 0 or last:
                    _log(window, state.step, options, metrics, bar)
                if options.sample_every and state.step % options.sample_every == 0 and on_sample is not None:
                    window.check()
                    on_sample(state.step)
                if options.time_limit and time.monotonic() - started > 60 * options.time_limit and not last:
                    reason = "time limit"
                reason = together.latest(REASONS, interruption.requested or reason)
                if state.step % options.checkpoint_every == 0 or last or reason != "finished":
                    window.check()
                    if not together.all(state.finite()):  # by the last update, whose loss and gradient were
                        raise _diverged(f"the weights are not finite after step {state.step}")
                    saver.save(state)
                    saved = state.step
                if reason != "finished":
                    break
        except BaseException as error:
            if (
                between
                and not state.sharded  # the others are elsewhere, with their shares
                and state.step > saved
                and not isinstance(error, DivergenceError)
                and window.finite()
                and state.finite()
            ):
                saver.save(state)  # bad data, say: the steps done are not lost
            raise
        finally:
            batches.close()
    return together.latest(REASONS, interruption.requested or reason)  # all is on the disk; a signal may be new


REASONS = ("finished", "time limit", *(number.name for number in Interruption.SIGNALS))
"""Why training ends; of several at once the last counts."""


def _step(
    state: TrainState,
    model: ScoreModel,
    loss_fn: LossFn,
    x0: Tensor,
    y: Tensor | None,
    options: TrainOptions,
    together: Processes,
) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns the mean loss here and the norm of the gradient, both still on the device."""
    places = range(together.rank, options.batch_size, together.count)
    draws = StepDraws(options.seed, state.step, options.batch_size, places, x0.device)
    torch.manual_seed(derive_seed(options.seed, "dropout", state.step, together.rank))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(options, state.step)
    total = torch.zeros((), device=x0.device)
    parts = options.accumulation
    labels = [None] * parts if y is None else y.chunk(parts)
    for number, part in enumerate(zip(x0.chunk(parts), labels, draws.chunk(parts), strict=True), start=1):
        with nullcontext() if number == parts else together.apart(model):
            loss = loss_fn(model, *part).mean() / parts
            loss.backward()
        total += loss.detach()
    norm = whole(torch.nn.utils.clip_grad_norm_(state.model.parameters(), options.grad_clip or math.inf))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.model)
    return total, norm


def _move(y: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if y is None else y.to(device)


class _Window:
    """Losses since the last record, summed on the device, and the first step at which something was not finite."""

    def __init__(self, device: torch.device | str, together: Processes) -> None:
        self.together = together
        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)  # 0: none
        self.reset()

    def reset(self) -> None:
        self.loss = torch.zeros_like(self.first_bad, dtype=torch.float32)
        self.norm = torch.zeros_like(self.loss)
        self.count = 0
        self.since = time.monotonic()

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        bad = (self.first_bad == 0) & ~(loss.isfinite() & norm.isfinite())
        self.first_bad = torch.where(bad, step, self.first_bad)
        self.loss, self.norm, self.count = self.loss + loss, self.norm + norm, self.count + 1

    def finite(self) -> bool:
        return int(self.first_bad) == 0

    def check(self) -> None:
        """Raise DivergenceError if any step since the start was not finite."""
        if not self.finite():
            raise _diverged(f"the loss or its gradient is not finite at step {int(self.first_bad)}")


def _diverged(what: str) -> DivergenceError:
    return DivergenceError(
        f"{what}. Likely causes: a learning rate that is too high (lower training.learning_rate, lengthen "
        "training.warmup_steps), no gradient clipping (training.grad_clip), the likelihood weighting at small t, or "
        "bad values in the data. The last checkpoint is from before and is kept"
    )


def _log(window: _Window, step: int, options: TrainOptions, metrics: Metrics, bar: tqdm) -> None:
    window.check()
    rate = window.count * options.batch_size / max(time.monotonic() - window.since, 1e-9)
    loss = float(window.together.mean(window.loss)) / window.count
    values = {"loss": loss, "grad_norm": float(window.norm) / window.count}
    if metrics is not None:
        metrics.log(step, **values, learning_rate=learning_rate(options, step - 1), images_per_second=rate)
    told = f"loss {loss:.4f}, {rate:.3g} images/s" if rate < 100 else f"loss {loss:.4f}, {rate:.0f} images/s"
    bar.set_postfix_str(told)
    if bar.disable and window.together.first:  # no terminal: a line instead of a bar
        print(f"step {step}/{options.steps}: {told}", flush=True)
    window.reset()
