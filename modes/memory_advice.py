"""What is told of memory: what training needs, and the settings that would fit where that is too much."""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from modes.memory import SMALLER, Budget, keeps_activations, samples_at_once
from modes.passes import Pass, passes_beside
from modes.run import Run
from training import MemoryEstimate, fewest_parts, largest_power
from training.builders import Experiment
from training.memory import in_words


def memory_lines(run: Run, budget: Budget) -> Iterator[str]:
    """What training needs; and where that does not fit, what would."""
    samples = samples_at_once(run.config, run.world_size)
    yield f"memory: {budget.told(samples)}"
    if run.config.training.parallel == "fsdp" and run.world_size == 1:
        yield "note: training.parallel is fsdp, but the only process has a share of all; torchrun starts several"
    if budget.estimate(samples).total > budget.limit():
        yield f"note: that may be too much. {advice_for_training(run, budget, budget.limit())}"
    yield from _lines_beside(run, budget, samples)


def _lines_beside(run: Run, budget: Budget, samples: int) -> Iterator[str]:
    """What is done between steps and does not fit beside what training keeps, and what of it would."""
    step, limit = budget.estimate(samples), budget.limit()
    held = step.resident + (step.activations if keeps_activations(run) else 0)
    for each in passes_beside(run.config):
        # without gradients no sample takes more than in a step, which saves most runs this estimate
        if held + step.activations * -(-each.samples // samples) <= limit:
            continue

        def beside(n: int, work: str = each.work) -> MemoryEstimate:
            return budget.estimate(n, work=work)._replace(resident=held)

        def fits(n: int, work: str = each.work) -> bool:
            return beside(n, work).total <= limit

        if not fits(each.samples):
            found = smaller_pass(each, fits, beside)
            yield (
                f"note: {each.name} may be too much beside that: {each.samples} samples at once make it "
                f"{in_words(beside(each.samples).total)}. {advice(found, beside(1))}"
            )


def smaller_pass(
    batch: Pass, fits: Callable[[int], bool], estimate: Callable[[int], MemoryEstimate]
) -> dict[str, MemoryEstimate]:
    """The largest smaller batch of which so many samples fit, by its flag, with what it needs; {} for none."""
    smaller = largest_power(lambda n: fits(n * batch.each), max(batch.count - 1, 1))
    if not 0 < smaller < batch.count:
        return {}
    return {f"--config.{batch.setting}={smaller}": estimate(smaller * batch.each)}


def advice_for_training(run: Run, budget: Budget, limit: float) -> str:
    """Settings by which training stays below a limit, with what they need."""
    settings, count = run.config.training, run.world_size
    whole = max(settings.batch_size // count, 1)
    found: dict[str, MemoryEstimate] = {}
    fewest = whole + 1
    for change, checkpointing, precision in _variants(run.config, run.experiment):

        def fits(n: int, checkpointing: bool | None = checkpointing, precision: str | None = precision) -> bool:
            return budget.estimate(n, checkpointing, precision).total <= limit

        parts = fewest_parts(fits, whole)
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
