"""Make a run folder of the weights of another project, for every other mode to work on."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from models import Description
from models.pretrained import FORMATS, Pretrained, read
from modes.run import Run, describe
from training import builders, load_weights, locked
from training.checkpoint import step_of

AUGMENT = 0.12
"""Probability of augmentations where a network knows of them: EDM's for CIFAR-10."""

__all__ = ["FORMATS", "import_run", "read_source"]


def read_source(
    config: ConfigDict, path: str | None, format: str, settings: str | None
) -> tuple[Pretrained, ConfigDict]:
    """The weights, and the configuration of a run of them.

    Args:
        config: what else the run is to have.
        path: of the weights.
        format: theirs, or "auto".
        settings: theirs: a published name, or a JSON file; None where they bring them.

    Raises:
        ValueError: no path, or weights that cannot be read.
    """
    if path is None:
        raise ValueError("--mode=import needs --source=PATH, the file or folder of the weights")
    source = read(path, format, config=settings)
    return source, configured(config, source.description)


def configured(config: ConfigDict, description: Description) -> ConfigDict:
    """The configuration with this score model, and with the shape of its samples where there are no data.

    Raises:
        ValueError: the network is not one of images.
    """
    options = dict(description.options)
    if "image_size" not in options:
        raise ValueError(f"a network {description.network!r} is not one of images; load it by models.pretrained.load")
    classes, channels, size = (options.pop(key, 0) for key in ("num_classes", "in_channels", "image_size"))
    attributes, augment_dims = (options.pop(key, 0) for key in ("num_attributes", "augment_dims"))
    config.sde.name = description.process
    for key, value in description.process_options.items():
        config.sde[key] = float(value)
    model: dict[str, Any] = {
        "name": description.network,
        "prediction": description.prediction,
        "conditioning": description.conditioning,
        "sigma_data": description.sigma_data,
        "conditional": bool(classes or attributes),
    }
    chain = {key if key == "chain" else f"chain_{key}": value for key, value in description.chain.items()}
    for key, value in (model | chain | options).items():
        config.model[key] = tuple(value) if isinstance(value, list) else value
    config.data.low, config.data.high = float(description.low), float(description.high)
    if augment_dims and not config.data.augment:
        config.data.augment = AUGMENT
    if config.data.name == "none":
        config.data.attributes = ",".join(description.label_names or map(str, range(attributes)))
        config.data.channels, config.data.image_size = channels, size
        config.data.classes, config.data.levels = classes, description.levels
        config.data.dequantize = description.dequantized
    return config


def import_run(run: Run) -> None:
    """Write configuration and checkpoint; the optimizer starts afresh where training goes on.

    Raises:
        ValueError: the folder holds a run already.
    """
    if run.source is None:
        raise ValueError("there are no weights to import")
    with locked(run.folder.path):
        checkpoint = _write(run, run.source)
    print(f"{describe(run)}; step {run.source.step}: {checkpoint}")
    print("next:")
    print(f"  {run.command('sample')}")
    data = "" if len(run.experiment.dataset) else " --config.data.name=folder --config.data.root=FOLDER"
    print(f"  {run.command('likelihood')}{data}")
    print(f"  {run.command('train')}{data} --config.training.steps={run.source.step + 10_000}   # trains on")


def _write(run: Run, source: Pretrained) -> Path:
    """The checkpoint, and then the configuration."""
    folder, model = run.folder, run.experiment.model
    steps = [step_of(path) for path in folder.checkpoints.list()]
    if folder.config_path.exists() or steps not in ([], [source.step]):  # its own step: an import that was cut off
        raise ValueError(f"{folder.path} holds a run already; give another --workdir")
    state = builders.build_state(run.config, model)
    load_weights(state.model.net, source.trained or source.weights, folder.path)
    state.step = source.step
    for average in state.averages.values():
        load_weights(average.model.net, source.weights, folder.path)
        average.updates = source.step
    checkpoint = state.save(folder.checkpoints)  # first: one that fails leaves nothing that looks like a run
    folder.store_config(run.config.to_dict())
    return checkpoint
