"""Memory that runs out, told with what was being done and what would fit."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from models import ScoreModel
from modes.memory import Budget, samples_at_once
from modes.memory_advice import advice, advice_for_training, smaller_pass
from modes.passes import Pass
from modes.run import Run
from training.device_memory import ran_out


class OutOfMemoryError(MemoryError):
    """Memory ran out; the text is for the user."""


@contextmanager
def training_memory(run: Run, budget: Budget, step: Callable[[], int]) -> Iterator[None]:
    """Context in which running out of memory is told with the step of training, and what would fit.

    Raises:
        OutOfMemoryError: it ran out.
    """

    def told() -> str:
        sizes, samples = run.config.training, samples_at_once(run.config, run.world_size)
        if sizes.parallel == "fsdp" and run.world_size > 1:  # of shares there is no estimate
            return (
                f"in step {step() + 1} of training, with {samples} samples at once in each process: raise "
                "training.accumulation, or set training.checkpointing=True. What was saved before is kept"
            )
        what_fits = advice_for_training(run, budget, budget.limit(failed=samples))
        return (
            f"in step {step() + 1} of training, with {sizes.batch_size} samples in {sizes.accumulation} part(s), "
            f"{samples} at once: the estimate was {budget.told(samples)}. {what_fits}. What was saved before is kept"
        )

    with _telling(told):
        yield


@contextmanager
def passing_memory(run: Run, model: ScoreModel, batch: Pass) -> Iterator[None]:
    """The same for other work with a network, also where that is done between steps of training.

    Raises:
        OutOfMemoryError: it ran out.
    """
    budget = Budget(run, model, batch.work)

    def told() -> str:
        limit = budget.limit(failed=batch.samples)
        found = smaller_pass(batch, lambda n: budget.estimate(n).total <= limit, budget.estimate)
        return (
            f"in {batch.name}, with {batch.samples} samples at once: the estimate was {budget.told(batch.samples)}. "
            f"{advice(found, budget.estimate(1))}"
        )

    with _telling(told):
        yield


@contextmanager
def _telling(told: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)  # frees what was being computed
        raise OutOfMemoryError(f"memory ran out {told()}") from error
