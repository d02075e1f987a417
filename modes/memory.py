"""What a run will need of memory, against what there is, and the sizes that are left to it (``auto``)."""

import json
from functools import cache
from typing import Any

from ml_collections import ConfigDict

from models import ScoreModel
from modes.passes import passes_beside
from modes.run import Run
from training import (
    ALONE,
    Processes,
    builders,
    estimate_memory,
    fewest_parts,
    largest_power,
    really_fits,
)
from training.device_memory import free_memory, processes_on
from training.memory import in_words
from training.settings import AUTO

RESERVE = 256 * 2**20
"""Bytes that are left to the program and its kernels, which the estimate does not see."""
FILL = {"cuda": 0.9, "cpu": 0.5}
"""Share of the rest that may be planned for, by kind of device: allocators leave gaps, as docs/memory.md measures."""


class Budget:
    """What passes through a model need, against what its device has.

    Args:
        run: what it is for.
        model: the score model, on its device.
        work: as in ``estimate_memory``, like ``averages`` and ``shares``.
        averages: of the weights.
        shares: of them in all processes.

    Attributes:
        room: bytes that the device has for all that the estimate counts; None where that is not known.
    """

    def __init__(self, run: Run, model: ScoreModel, work: str = "training", averages: int = 1, shares: int = 1) -> None:
        weights = list(model.parameters())
        free = free_memory(weights[0].device)
        if free is not None:
            free //= processes_on(weights[0].device, run.config.device)
        held = sum(p.numel() * p.element_size() for p in weights)
        self.device = weights[0].device
        self.room = None if free is None else max(free + held - RESERVE, 0)
        made = {"averages": averages, "shares": shares}
        # each costs a second: by (samples, checkpointing, precision, work)
        self.estimate = cache(
            lambda samples, checkpointing=None, precision=None, work=work: estimate_memory(
                model,
                run.experiment.dataset.shape,
                samples,
                work=work,
                **made,
                checkpointing=checkpointing,
                precision=precision,
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

    A run that has checkpoints keeps its batch, on which what it learns depends, and its parts, while they fit.

    Args:
        run: what is to be trained.
        together: the processes that share it.
        attempt: make sure on a GPU by trying.

    Raises:
        ValueError: not even one sample fits, or the system does not tell what there is.
    """
    sizes, experiment = run.config.training, run.experiment
    averages = 1 + len(builders.average_makers(run.config))
    count = run.world_size  # also where they are not connected, for a dry run
    shares = count if sizes.parallel == "fsdp" else 1
    budget = Budget(run, experiment.model, averages=averages, shares=shares)
    if AUTO not in (sizes.batch_size, sizes.accumulation):
        return budget
    kept = _kept_sizes(run, together)
    if sizes.batch_size == AUTO:
        sizes.batch_size = kept.get("batch_size", AUTO)
    if AUTO in (sizes.batch_size, sizes.accumulation) and budget.room is None:
        raise ValueError(f"this system does not tell how much memory {experiment.device} has; give a number for auto")

    beside = _beside(run, budget) if keeps_activations(run) else 0

    @cache
    def fits(samples: int) -> bool:
        estimate = budget.estimate(samples)
        estimate = estimate._replace(resident=estimate.resident + beside)
        return estimate.total <= budget.limit() and (
            not attempt or really_fits(experiment.model, experiment.dataset.shape, estimate)
        )

    if sizes.batch_size == AUTO:
        parts = 1 if sizes.accumulation == AUTO else sizes.accumulation
        most = max(len(experiment.dataset) // (count * parts), 1)
        samples = _agreed(together, largest_power(fits, most), budget)
        sizes.batch_size, sizes.accumulation = samples * parts * count, parts
    if sizes.accumulation == AUTO:
        whole, before = max(sizes.batch_size // count, 1), kept.get("accumulation")
        if type(before) is int and whole % before == 0 and together.all(fits(whole // before)):
            sizes.accumulation = before
            return budget
        parts = fewest_parts(fits, whole)
        sizes.accumulation = whole // _agreed(together, whole // parts if parts else 0, budget)
    return budget


def _kept_sizes(run: Run, together: Processes) -> dict[str, Any]:
    """The section ``training`` of the stored configuration, as the first process finds it; {} for a new run."""
    stored = (run.folder.stored_config() or {}) if run.folder.checkpoints.latest() is not None else {}
    return json.loads(together.told(json.dumps(stored.get("training", {}))) or "{}")


def keeps_activations(run: Run) -> bool:
    """Whether the memory of a step's activations stays between steps: that of a CUDA graph does."""
    return run.experiment.device.type == "cuda" and builders.records_graph(run.config)


def _beside(run: Run, budget: Budget) -> int:
    """Bytes for what is done between steps; 0 where not even one sample would fit beside that, which is told later."""
    most = max(
        (budget.estimate(each.samples, work=each.work).activations for each in passes_beside(run.config)), default=0
    )
    return most if budget.estimate(1).total + most <= budget.limit() else 0


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
