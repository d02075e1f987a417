"""The training loop: loss, gradient, step, average; log, checkpoint and leave in good order."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data import Dataset, StepDraws, derive_seed, train_batches
from models.ema import Model
from training.checkpoint import Checkpoints
from training.gradient import LossFn, Part, gradient_of
from training.interrupt import Interruption
from training.kept_memory import kept_memory
from training.metrics import Metrics
from training.processes import ALONE, Processes
from training.progress import NOTHING, DivergenceError, Progress, diverged
from training.saver import Saver
from training.sharding import whole
from training.state import TrainState


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
        snapshot_every: steps between snapshots of the averages by power functions; 0 for none.
        sample_every: steps between sample pictures; 0 for none.
        heldout_every: steps between evaluations of held-out data (one more at the end); 0 for none.
        evaluate_every: steps between evaluations of samples (one more at the end); 0 for none.
        time_limit: minutes after which training saves and stops; 0 for none.
        cuda_graph: on a GPU, record the gradient of a part as a CUDA graph.
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
    snapshot_every: int = 0
    sample_every: int = 0
    heldout_every: int = 0
    evaluate_every: int = 0
    time_limit: float = 0.0
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(
                f"a batch of {self.batch_size} cannot be cut into {self.accumulation} equal parts; choose a divisor "
                "of it for training.accumulation"
            )
        if self.decay not in DECAYS:
            raise ValueError(f"unknown decay {self.decay!r}; choose from {', '.join(map(repr, DECAYS))}")

    def check_shared(self, count: int) -> None:
        """Raise ValueError unless so many processes can share a batch evenly."""
        if self.batch_size % (count * self.accumulation):
            raise ValueError(
                f"a batch of {self.batch_size} cannot be shared by {count} processes in {self.accumulation} equal "
                f"parts each; use a multiple of {count * self.accumulation}"
            )


DECAYS: dict[str, Callable[[float], float]] = {
    "none": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
}
"""Name -> factor of the learning rate at a share of the run."""


class Evaluated(NamedTuple):
    """What an evaluation of samples found.

    Attributes:
        values: what to record, by name.
        best: whether this step is the best so far, and its state is to be kept; the same on every process.
        kept: what is kept with it.
    """

    values: Mapping[str, float]
    best: bool = False
    kept: Mapping[str, Any] = {}


NOT_EVALUATED = Evaluated(NOTHING)


def learning_rate(options: TrainOptions, step: int) -> float:
    """The rate of a step (0 is the first): linear warm-up, then the decay."""
    warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    return options.learning_rate * warm * DECAYS[options.decay](min(1.0, step / options.steps))


def train(
    state: TrainState[Model],
    loss_fn: LossFn[Model],
    dataset: Dataset,
    options: TrainOptions,
    checkpoints: Checkpoints,
    metrics: Metrics | None,
    *,
    device: torch.device | str = "cpu",
    on_sample: Callable[[int], None] | None = None,
    on_heldout: Callable[[int], Mapping[str, float]] | None = None,
    on_evaluate: Callable[[int], Evaluated] | None = None,
    flops: Callable[[], int] | None = None,
    together: Processes = ALONE,
    snapshots: Checkpoints | None = None,
    best: Checkpoints | None = None,
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
        on_heldout: called with the step every ``heldout_every`` steps, on every process; what to record, by name.
        on_evaluate: called with the step every ``evaluate_every`` steps, on every process.
        flops: counts the operations of training on one sample, for the record; None for not known.
        together: the processes that share the work; the first one writes.
        snapshots: where those of ``options.snapshot_every`` are saved.
        best: where the state is saved when ``on_evaluate`` finds it the best so far.

    Returns:
        Why it ended: "finished", "time limit", or the name of a signal.

    Raises:
        DivergenceError: loss, gradient or weights are not finite; the last good checkpoint stays.
        ValueError: the batch cannot be shared evenly.
    """
    options.check_shared(together.count)
    started = time.monotonic()
    saved = state.step
    gradient = gradient_of(state.model, loss_fn, together, graph=options.cuda_graph)
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
    progress = Progress(
        state.step,
        options.steps,
        options.batch_size,
        device=device,
        together=together,
        metrics=metrics,
        flops=flops,
        time_limit=options.time_limit,
    )
    targets = (checkpoints, snapshots, best) if together.first else (None, None, None)
    reason = REASONS[0]
    with kept_memory(torch.device(device)), Interruption() as interruption, progress, Saver(*targets) as saver:
        try:
            while state.step < options.steps:
                batch = next(batches)
                x0, y = _move(batch.x, device), None if batch.y is None else _move(batch.y, device)
                progress.add(state.step + 1, *_step(state, gradient, x0, y, options, together))
                state.step += 1
                state.whole = True
                last = state.step == options.steps
                heldout, evaluated = NOTHING, NOT_EVALUATED
                if on_heldout is not None and _due(state.step, options.heldout_every, last):
                    with progress.aside():
                        heldout = on_heldout(state.step)
                if on_evaluate is not None and _due(state.step, options.evaluate_every, last):
                    with progress.aside():
                        evaluated = on_evaluate(state.step)
                measured = {**heldout, **evaluated.values}
                if measured or _due(state.step, options.log_every, last):
                    progress.record(state.step, learning_rate(options, state.step - 1), measured)
                if on_sample is not None and _due(state.step, options.sample_every):
                    with progress.aside():
                        on_sample(state.step)
                if options.time_limit and time.monotonic() - started > 60 * options.time_limit and not last:
                    reason = "time limit"
                reason = together.latest(REASONS, interruption.requested or reason)
                due = _due(state.step, options.checkpoint_every, last) or reason != "finished"
                snapshot = _due(state.step, options.snapshot_every)
                if due or snapshot or evaluated.best:
                    progress.check()
                    if not together.all(state.finite()):  # by the last update, whose loss and gradient were
                        raise diverged(f"the weights are not finite after step {state.step}")
                if snapshot:  # before the checkpoint, which vouches for it
                    saver.snapshot(state)
                if evaluated.best:
                    saver.best(state, evaluation=evaluated.kept)
                if due:
                    saver.save(state)
                    saved = state.step
                if reason != "finished":
                    break
        except BaseException as error:
            if (
                state.whole
                and not state.sharded  # the others are elsewhere, with their shares
                and state.step > saved
                and not isinstance(error, DivergenceError | KeyboardInterrupt)
                and progress.finite()
                and state.finite()
            ):
                saver.save(state)  # bad data, or too little memory: the steps done are not lost
            raise
        finally:
            batches.close()
    return together.latest(REASONS, interruption.requested or reason)  # all is on the disk; a signal may be new


REASONS = ("finished", "time limit", *(number.name for number in Interruption.SIGNALS))
"""Why training ends; of several at once the last counts."""


def _due(step: int, every: int, last: bool = False) -> bool:
    """Whether something is done after this step, which is done every so many steps (0: never), or after the last."""
    return every > 0 and (step % every == 0 or last)


def _step(
    state: TrainState,
    gradient: Callable[[Sequence[Part]], Tensor],
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
    count = options.accumulation
    labels = [None] * count if y is None else y.chunk(count)
    loss = gradient(list(zip(x0.chunk(count), labels, draws.chunk(count), strict=True)))
    norm = whole(torch.nn.utils.clip_grad_norm_(state.model.parameters(), options.grad_clip or math.inf))
    state.whole = False
    state.optimizer.step()
    state.update_averages()
    return loss, norm


def _move(values: Tensor, device: torch.device | str) -> Tensor:
    """To the device; on its way to a GPU it waits for nothing that goes on there."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
