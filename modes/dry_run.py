"""What a call would do, without doing it."""

from modes.memory import plan_training
from modes.memory_advice import memory_lines
from modes.run import Run, check_evaluation, describe
from training import builders, quantity, training_flops


def dry_run(run: Run, scores: bool = False) -> None:
    """Show what would run, and write nothing, not even the converted images."""
    cache, run.config.data.cache = run.config.data.cache, ""
    builders.build_loss(run.config, run.experiment.sde)
    check_evaluation(run, scores=scores, data=scores)
    budget = plan_training(run, attempt=False)
    description = describe(run)
    run.config.data.cache = cache
    print(run.config.to_json(indent=2))
    print(description, *memory_lines(run, budget), sep="\n")
    flops = training_flops(run.experiment.model, run.experiment.dataset.shape)
    print(
        f"compute: {quantity(flops.total * run.config.training.batch_size, 'FLOP')} a step; for each sample "
        f"{quantity(flops.forward, 'FLOP')} forward and {quantity(flops.backward, 'FLOP')} backward"
    )
