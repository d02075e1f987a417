"""Train (or go on), then draw samples and score held-out data with the result."""

import shlex
from contextlib import nullcontext
from pathlib import Path

from evaluation import picture, save_picture
from modes.heldout import heldout_measure
from modes.likelihood import score
from modes.run import Run, check_evaluation, describe
from modes.sample import draw, sample
from training import (
    LossFn,
    Metrics,
    Processes,
    TrainOptions,
    TrainState,
    builders,
    joined,
    locked,
    train,
    training_flops,
)


def train_run(run: Run) -> None:
    """The main job; of several processes (torchrun) the first one writes, prints, and draws the samples."""
    config, folder = run.config, run.folder
    state = builders.build_state(config, run.experiment.model)
    options = builders.build_options(config, run.experiment.dataset)
    loss_fn = builders.build_loss(config, run.experiment.sde)
    check_evaluation(run, scores=True)
    changes = folder.changes(config.to_dict())
    with joined(run.rank, run.world_size) as together, locked(folder.path) if together.first else nullcontext():
        reason = _train(run, state, loss_fn, options, together, changes)
    again = run.command("train")
    if reason in ("SIGINT", "SIGTERM"):
        if together.first:
            print(f"stopped by {reason} after step {state.step} of {options.steps}; all is saved. To go on: {again}")
        return
    if reason == "time limit" and together.first:
        minutes = f"{options.time_limit:g} minutes"
        print(f"time limit of {minutes} reached after step {state.step} of {options.steps}; all is saved")
    if together.first:
        sample(run, state.ema.model, f"step {state.step}")
    score(run, state.ema.model, folder.checkpoint())
    if not together.first:
        return
    print("next:")
    if reason == "time limit":
        print(f"  {again}   # goes on to step {options.steps}")
    print(f"  {run.command('sample')} --sampler=dpmpp_sde   # or ode, ancestral, pc, ...")
    print(f"  {run.command('likelihood')} --config.likelihood.estimate=all")
    print(f"  {again} --config.training.steps={2 * options.steps}   # trains on")
    print(f"  tensorboard --logdir={shlex.quote(str(folder.path))}")


def _train(
    run: Run, state: TrainState, loss_fn: LossFn, options: TrainOptions, together: Processes, changes: list[str]
) -> str:
    """Take up the run where it stands, and train; returns why that ended."""
    config, folder, experiment = run.config, run.folder, run.experiment
    start = folder.starting_point(run.checkpoint) if together.first else None
    told = together.told(None if start is None else str(start))
    if told is not None:
        state.load(Path(told))
    if together.first:
        if start is not None:
            print(f"continuing {folder.path} from step {state.step}")
        folder.snapshots.remove_after(state.step)
        folder.store_config(config.to_dict())
        for change in changes:
            print(f"changed since this run began: {change}")
        print(describe(run), flush=True)
        if state.step >= options.steps:
            print(f"nothing to train: {state.step} steps are done, and training.steps is {options.steps}")
    with Metrics(folder.path, state.step) if together.first else nullcontext() as metrics:

        def on_sample(step: int) -> None:
            pixels = picture(draw(run, state.ema.model).x, experiment.dataset.quantizer)
            save_picture(pixels, folder.samples / f"step_{step:08d}.png")
            if metrics is not None:
                metrics.picture(step, "samples", pixels)

        return train(
            state,
            loss_fn,
            experiment.dataset,
            options,
            folder.checkpoints,
            metrics,
            device=experiment.device,
            on_sample=on_sample,
            on_heldout=heldout_measure(run, state.ema.model, together),
            flops=training_flops(experiment.model, experiment.dataset.shape).total,
            together=together,
            snapshots=folder.snapshots,
        )
