"""Train (or go on), then draw samples and score held-out data with the result."""

import shlex
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from evaluation import Parts, picture, save_picture
from models import ScoreModel
from models.fused.library import SWITCH, lacks_compiler
from modes.best import sample_measure
from modes.evaluation_settings import check_evaluation_settings
from modes.heldout import heldout_measure
from modes.likelihood import score
from modes.memory import plan_training
from modes.memory_advice import memory_lines
from modes.out_of_memory import training_memory
from modes.own_files import change_of, remember
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
    """The main job; several processes (torchrun) share all of it, and the first one writes and prints."""
    config, folder = run.config, run.folder
    loss_fn = builders.build_loss(config, run.experiment.sde)
    check_evaluation(run, scores=True)
    if config.training.evaluate_every:
        check_evaluation_settings(run)
    with joined(run.rank, run.world_size) as together:
        budget = plan_training(run, together)
        options = builders.build_options(config, run.experiment.dataset)
        options.check_shared(together.count)  # before anything is stored
        changes = [*folder.changes(config.to_dict()), *change_of(folder.path, run.own)]
        words = [f"changed since this run began: {change}" for change in changes]
        words += [describe(run), *memory_lines(run, budget), *_compiler_lines(run)] if together.first else []
        with locked(folder.path) if together.first else nullcontext():
            state = builders.build_state(config, run.experiment.model, together)
            with training_memory(run, budget, lambda: state.step):
                reason = _train(run, state, loss_fn, options, together, words)
            stopped = reason in ("SIGINT", "SIGTERM")
            model = state.ema.model if stopped else _averaged(run, state)
    again = run.command("train")
    if stopped:
        if together.first:
            print(f"stopped by {reason} after step {state.step} of {options.steps}; all is saved. To go on: {again}")
        return
    if reason == "time limit" and together.first:
        minutes = f"{options.time_limit:g} minute{'' if options.time_limit == 1 else 's'}"
        print(f"time limit of {minutes} reached after step {state.step} of {options.steps}; all is saved")
    checkpoint = folder.checkpoint()
    sample(run, model, checkpoint, f"step {state.step}")
    score(run, model, checkpoint)
    if not together.first:
        return
    print("next:")
    if reason == "time limit":
        print(f"  {again}   # goes on to step {options.steps}")
    print(f"  {run.command('sample')} --sampler=dpmpp_sde   # or ode, ancestral, pc, ...")
    print(f"  {run.command('likelihood')} --config.likelihood.estimate=all")
    print(f"  {run.command('evaluate')}   # how its samples compare with data")
    if config.training.evaluate_every and (best := folder.best.latest()):
        print(f"  {run.command('sample')} --checkpoint={shlex.quote(str(best))}   # the best that was seen")
    print(f"  {again} --config.training.steps={2 * options.steps}   # trains on")
    print(f"  tensorboard --logdir={shlex.quote(str(folder.path))}")


def _compiler_lines(run: Run) -> list[str]:
    """What would make training on a CPU faster, where that is missing: in float32 products take most of the time."""
    model = run.experiment.model
    norms = any(isinstance(part, nn.GroupNorm) for part in model.modules())
    slow = run.experiment.device.type == "cpu" and model.precision == "bfloat16" and norms
    if not slow or not lacks_compiler():
        return []
    return [
        "note: there is no C++ compiler (g++, or what CXX names), with which the normalisations between products in "
        f"bfloat16 would be faster; {SWITCH}=0 leaves this note out"
    ]


def _train(
    run: Run,
    state: TrainState[ScoreModel],
    loss_fn: LossFn[ScoreModel],
    options: TrainOptions,
    together: Processes,
    words: list[str],
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
        folder.check_folders()
        remember(folder.path, run.own)
        print(*words, sep="\n", flush=True)
        if state.step >= options.steps:
            print(f"nothing to train: {state.step} steps are done, and training.steps is {options.steps}")
    on_evaluate = sample_measure(run, lambda: _averaged(run, state), together)
    with Metrics(folder.path, state.step) if together.first else nullcontext() as metrics:

        def on_sample(step: int) -> None:
            parts = Parts(folder.samples / f".step_{step:08d}")
            if together.first:
                parts.remove()  # of another past
            model = _averaged(run, state)
            together.told(None)  # from here on they are of this step
            drawn = draw(run, model, parts)
            if drawn is not None and metrics is not None:
                pixels = picture(drawn.x, experiment.dataset.quantizer)
                save_picture(pixels, folder.samples / f"step_{step:08d}.png")
                metrics.picture(step, "samples", pixels)
                parts.remove()

        return train(
            state,
            loss_fn,
            experiment.dataset,
            options,
            folder.checkpoints,
            metrics,
            device=experiment.device,
            on_sample=on_sample,
            on_heldout=heldout_measure(run, lambda: _averaged(run, state), together),
            on_evaluate=on_evaluate,
            flops=(lambda: _flops(run)) if together.first else None,
            together=together,
            snapshots=folder.snapshots,
            best=folder.best,
        )


def _flops(run: Run) -> int:
    """Operations of training on one sample; of a network of its own, for the one that trains may be in shares."""
    model, shape = run.experiment.model, run.experiment.dataset.shape
    with torch.device("meta"):
        net = builders.describe_model(run.config, run.experiment.dataset).build_network()
    return training_flops(model.around(net), shape).total


def _averaged(run: Run, state: TrainState[ScoreModel]) -> ScoreModel:
    """The averaged model, all of it on each process, so that each can sample and score what it likes."""
    device, dataset = run.experiment.device, run.experiment.dataset
    return state.averaged(lambda: builders.build_model(run.config, dataset, device).to(device))
