"""What a run will need of memory, the sizes that are left to it (``auto``), and what would fit where they do not."""

import os
from collections.abc import Iterator
from functools import cache

from ml_collections import ConfigDict

from models import ScoreModel
from modes.run import Run
from training import (
    ALONE,
    MemoryEstimate,
    Processes,
    builders,
    estimate_memory,
    fewest_parts,
    largest_power,
    really_fits,
)
from training.builders import Experiment
from training.device_memory import free_memory
from training.memory import in_words
from training.settings import AUTO

RESERVE = 256 * 2**20
"""Bytes that are left to the program and its kernels, which the estimate does not see."""
FILL = {"cuda": 0.9, "cpu": 0.5}
"""Share of the rest that may be planned for, by kind of device: allocators leave gaps, as docs/memory.md measures."""


class Budget:
    """What passes through a model need, against what its device has.

    Args:
        model: the score model, on its device.
        shape: of one sample.
        work: as in ``estimate_memory``, like ``averages`` and ``shares``.
        averages: of the weights.
        shares: of them in all processes.

    Attributes:
        room: bytes that the device has for all that the estimate counts; None where that is not known.
    """

    def __init__(
        self, model: ScoreModel, shape: tuple[int, ...], work: str = "training", averages: int = 1, shares: int = 1
    ) -> None:
        weights = list(model.parameters())
        free = free_memory(weights[0].device)
        if free is not None and weights[0].device.type == "cpu":
            free //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # those that torchrun started on this machine share it
        held = sum(p.numel() * p.element_size() for p in weights)
        self.device = weights[0].device
        self.room = None if free is None else max(free + held - RESERVE, 0)
        made = {"work": work, "averages": averages, "shares": shares}
        # each costs a second: by (samples, checkpointing, precision)
        self.estimate = cache(
            lambda samples, checkpointing=None, precision=None: estimate_memory(
                model, shape, samples, **made, checkpointing=checkpointing, precision=precision
            )
        )

    def told(self, samples: int) -> str:
        """What a pass needs, and what there is."""
        there = "" if self.room is None else f"; {self.device} has {in_words(self.room)} for it"
        return f"about {self.estimate(samples)}{there}"

    def limit(self, failed: int | None = None) -> float:
        """Bytes to plan for: a share of the room; and less than that many samples seemed to need, which have failed."""
        room = float("inf") if self.room is None else FILL[self.device.type] * self.room
        if failed is None:
            return room
        estimate = self.estimate(failed)
        return min(room, estimate.resident + estimate.activations / 2)


def plan_training(run: Run, together: Processes = ALONE, *, attempt: bool = True) -> Budget:
    """Put numbers in the place of ``auto`` in the configuration, the same in all processes; returns the budget.

    A run that has checkpoints keeps its batch, on which what it learns depends.

    Args:
        run: what is to be trained.
        together: the processes that share it.
        attempt: make sure on a GPU by trying.

    Raises:
        ValueError: not even one sample fits, or the system does not tell what there is.
    """
    sizes, experiment, folder = run.config.training, run.experiment, run.folder
    averages = 1 + len(builders.average_makers(run.config))
    count = run.world_size  # also where they are not connected, for a dry run
    shares = count if sizes.parallel == "fsdp" else 1
    budget = Budget(experiment.model, experiment.dataset.shape, averages=averages, shares=shares)
    if sizes.batch_size == AUTO and folder.checkpoints.latest() is not None:
        sizes.batch_size = (folder.stored_config() or {}).get("training", {}).get("batch_size", AUTO)
    if AUTO in (sizes.batch_size, sizes.accumulation) and budget.room is None:
        raise ValueError(f"this system does not tell how much memory {experiment.device} has; give a number for auto")

    @cache
    def fits(samples: int) -> bool:
        estimate = budget.estimate(samples)
        return estimate.total <= budget.limit() and (
            not attempt or really_fits(experiment.model, experiment.dataset.shape, estimate)
        )

    if sizes.batch_size == AUTO:
        parts = 1 if sizes.accumulation == AUTO else sizes.accumulation
        most = max(len(experiment.dataset) // (count * parts), 1)
        samples = _agreed(together, largest_power(fits, most), budget)
        sizes.batch_size, sizes.accumulation = samples * parts * count, parts
    if sizes.accumulation == AUTO:
        whole = max(sizes.batch_size // count, 1)
        parts = fewest_parts(fits, whole)
        sizes.accumulation = whole // _agreed(together, whole // parts if parts else 0, budget)
    return budget


def _agreed(together: Processes, samples: int, budget: Budget) -> int:
    """The fewest samples that fit into one of the processes."""
    least = together.least(samples)
    if least == 0:
        raise ValueError(f"auto finds no size that fits: one sample at a time needs {budget.told(1)}. {SMALLER}")
    return least


SMALLER = "Use a smaller network, or a device with more memory"


def samples_at_once(config: ConfigDict, count: int) -> int:
    """Samples that pass through the network of one of the processes at once, in training."""
    return max(config.training.batch_size // (config.training.accumulation * count), 1)


def memory_lines(run: Run, budget: Budget) -> Iterator[str]:
    """What training needs; and where that does not fit, what would."""
    samples = samples_at_once(run.config, run.world_size)
    yield f"memory: {budget.told(samples)}"
    if budget.estimate(samples).total > budget.limit():
        yield f"note: that may be too much. {advice_for_training(run, budget, budget.limit())}"


def advice_for_training(run: Run, budget: Budget, limit: float) -> str:
    """Settings by which training stays below a limit, with what they need."""
    settings, count = run.config.training, run.world_size
    whole = max(settings.batch_size // count, 1)
    found: dict[str, MemoryEstimate] = {}
    fewest = whole + 1
    for change, checkpointing, precision in _variants(run.config, run.experiment):
        parts = fewest_parts(lambda n, c=checkpointing, p=precision: budget.estimate(n, c, p).total <= limit, whole)
        if 0 < parts < fewest:
            fewest, parts = parts, max(parts, settings.accumulation)
            cut = [f"--config.training.accumulation={parts}"] if parts > settings.accumulation else []
            found[" ".join([*change, *cut])] = budget.estimate(whole // parts, checkpointing, precision)
    smaller = largest_power(lambda n: budget.estimate(n).total <= limit, samples_at_once(run.config, count))
    if smaller:
        batch = smaller * count * settings.accumulation
        found[f"--config.training.batch_size={batch}, which changes what is learned"] = budget.estimate(smaller)
    return advice(found, budget.estimate(1))


def _variants(config: ConfigDict, experiment: Experiment) -> Iterator[tuple[list[str], bool | None, str | None]]:
    """(flags, checkpointing, precision), from what costs least."""
    again, low = ["--config.training.checkpointing=True"], ["--config.model.precision=bfloat16"]
    recomputes, halves = config.training.checkpointing, experiment.model.precision == "bfloat16"
    yield [], None, None
    if not recomputes:
        yield again, True, None
    if not halves and experiment.device.type == "cuda":
        yield low, None, "bfloat16"
        if not recomputes:
            yield [*again, *low], True, "bfloat16"


def advice(found: dict[str, MemoryEstimate], one: MemoryEstimate) -> str:
    """What fits: flags, and the estimate with them.

    Args:
        found: by flags; there may be none.
        one: sample at a time.
    """
    if not found:
        return f"Nothing fits: one sample at a time needs about {in_words(one.total)}. {SMALLER}"
    return "What fits: " + "; or ".join(f"{flags} (about {in_words(e.total)})" for flags, e in found.items())
