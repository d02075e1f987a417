"""Train a variational dequantiser for a trained run (arXiv 1902.00275, 2101.09258)."""

from data import Quantizer
from models import ScoreModel
from modes.dequantizer_settings import (
    build_dequantizer_loss,
    build_dequantizer_options,
    build_dequantizer_state,
)
from modes.out_of_memory import passing_memory
from modes.passes import dequantizer_pass
from modes.run import Run, check_evaluation
from training import Metrics, locked, train


def train_dequantizer(run: Run) -> None:
    """Tighten the bound of the SDE by where in its bin a value lies; the score model stays as it is."""
    experiment = run.experiment
    check_evaluation(run)
    quantizer = experiment.dataset.quantizer
    if quantizer is None:
        raise ValueError(f"{experiment.dataset.name!r} has no levels to dequantise")
    model, _ = run.trained_model()
    model.precision = "float32"
    batch = dequantizer_pass(run.config)
    with locked(run.folder.dequantizer.folder.parent), passing_memory(run, model, batch):
        _train(run, model, quantizer)


def _train(run: Run, model: ScoreModel, quantizer: Quantizer) -> None:
    config, folder, experiment = run.config, run.folder, run.experiment
    state = build_dequantizer_state(config, experiment.dataset, experiment.device)
    options, checkpoints = build_dequantizer_options(config), folder.dequantizer
    newest = checkpoints.latest()
    if newest is not None:
        state.load(newest)
        if state.step >= options.steps:
            print(
                f"the dequantiser of {folder.path} has {state.step} steps already, of {options.steps} asked for; raise "
                f"dequantizer.steps to train it on, or delete {checkpoints.folder.parent} to start afresh"
            )
            return
        print(f"continuing the dequantiser of {folder.path} from step {state.step}")
    stored = folder.stored_config()
    if stored is not None:  # later calls need its size
        folder.store_config({**stored, "dequantizer": config.dequantizer.to_dict()})
    loss_fn = build_dequantizer_loss(config, experiment.sde, model, quantizer)
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    with Metrics(checkpoints.folder.parent, state.step) as metrics:
        reason = train(state, loss_fn, experiment.dataset, options, checkpoints, metrics, device=experiment.device)
    done = f"after step {state.step} of {options.steps}"
    if reason != "finished":
        print(f"stopped by {reason} {done}; all is saved. To go on: {run.command('dequantizer')}")
        return
    print(f"finished {done}: {checkpoints.folder}")
    print(f"next:\n  {run.command('likelihood')} --config.likelihood.dequantization=variational")
