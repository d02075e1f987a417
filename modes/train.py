"""Train (or go on), then draw samples and score held-out data with the result."""

import shlex

from evaluation import picture, save_picture
from modes.likelihood import score
from modes.run import Run, check_evaluation, describe
from modes.sample import draw, sample
from training import Metrics, builders, train


def train_run(run: Run) -> None:
    """The main job."""
    config, folder, experiment = run.config, run.folder, run.experiment
    state = builders.build_state(config, experiment.model)
    options = builders.build_options(config, experiment.dataset)
    loss_fn = builders.build_loss(config, experiment.sde)
    check_evaluation(run, scores=True)
    changes, start = folder.changes(config.to_dict()), folder.starting_point(run.checkpoint)
    if start is not None:
        state.load(start)
        print(f"continuing {folder.path} from step {state.step}")
    folder.store_config(config.to_dict())
    for change in changes:
        print(f"changed since this run began: {change}")
    print(describe(run), flush=True)
    if state.step >= options.steps:
        print(f"nothing to train: {state.step} steps are done, and training.steps is {options.steps}")
    with Metrics(folder.path, state.step) as metrics:

        def on_sample(step: int) -> None:
            pixels = picture(draw(run, state.ema.model).x, experiment.dataset.quantizer)
            metrics.picture(step, "samples", pixels)
            save_picture(pixels, folder.samples / f"step_{step:08d}.png")

        reason = train(
            state,
            loss_fn,
            experiment.dataset,
            options,
            folder.checkpoints,
            metrics,
            device=experiment.device,
            on_sample=on_sample,
        )
    again = run.command("train")
    if reason in ("SIGINT", "SIGTERM"):
        print(f"stopped by {reason} after step {state.step} of {options.steps}; all is saved. To go on: {again}")
        return
    if reason == "time limit":
        minutes = f"{options.time_limit:g} minutes"
        print(f"time limit of {minutes} reached after step {state.step} of {options.steps}; all is saved")
    sample(run, state.ema.model, f"step {state.step}")
    score(run, state.ema.model, folder.checkpoint())
    print("next:")
    if reason == "time limit":
        print(f"  {again}   # goes on to step {options.steps}")
    print(f"  {run.command('sample')} --sampler=dpmpp_sde   # or ode, ancestral, pc, ...")
    print(f"  {run.command('likelihood')} --config.likelihood.estimate=all")
    print(f"  {again} --config.training.steps={2 * options.steps}   # trains on")
    print(f"  tensorboard --logdir={shlex.quote(str(folder.path))}")
