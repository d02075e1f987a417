"""From a configuration to objects: the one place where config keys meet the signatures of the rooms."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn

from data import AUGMENTATION_DIMS, Augmentation, Dataset, dataset_options, get_dataset
from models import EMA, MODELS, Average, Description, ScoreModel, parse_averages, power_std, recompute_blocks
from sde_lib import SDE, SDES, lookup
from training.device_memory import SPREAD
from training.gradient import LossFn
from training.loop import TrainOptions
from training.objective import chain, continuous, training_loss
from training.processes import ALONE, Processes
from training.sharding import shard
from training.state import TrainState

PARALLEL = {"ddp": "each process has all weights", "fsdp": "each process has a share of them"}
"""How several processes train together."""


@dataclass(frozen=True)
class Experiment:
    """What a configuration describes: the process, the model (untrained), the training data, and the device."""

    sde: SDE
    model: ScoreModel
    dataset: Dataset
    device: torch.device


def build_experiment(config: ConfigDict, local: int | None = None) -> Experiment:
    """Build everything that all modes need, with weights that depend on ``config.seed`` only.

    Args:
        config: the resolved configuration.
        local: number of this process on its machine, where there are several.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    dataset = build_dataset(config, "train")
    device = resolve_device(config.device, local)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams, graphs and random states are those of the current one
    torch.manual_seed(config.seed)
    model = build_model(config, dataset, device).to(device)
    return Experiment(model.sde, model, dataset, device)


def build_sde(config: ConfigDict) -> SDE:
    """The process; settings left at None take the process's own defaults.

    Raises:
        ValueError: unknown process, or a setting that it does not have.
    """
    return lookup(SDES, config.sde.name, "process (sde.name)")(**process_options(config))


def process_options(config: ConfigDict) -> dict[str, float]:
    """Those settings of the process that are given, all of which it must have."""
    process = lookup(SDES, config.sde.name, "process (sde.name)")
    accepted = inspect.signature(process).parameters
    given = {key: value for key, value in config.sde.items() if key != "name" and value is not None}
    foreign = [key for key in given if key not in accepted]
    if foreign:
        raise ValueError(
            f"sde.{foreign[0]} is set, but the process {config.sde.name!r} has no such setting; "
            f"it takes {', '.join(accepted)}"
        )
    return given


def build_dataset(config: ConfigDict, split: str) -> Dataset:
    """A split of the data set; it gets those settings of ``config.data`` that it has."""
    accepted = dataset_options(config.data.name)
    return get_dataset(config.data.name, split, **{key: config.data[key] for key in accepted if key in config.data})


def describe_model(config: ConfigDict, dataset: Dataset) -> Description:
    """The score model that a configuration asks for, for data of this shape.

    Raises:
        ValueError: unknown names, or a network for data of another kind.
    """
    settings = config.model
    network = lookup(MODELS, settings.name, "network (model.name)")
    if settings.conditional and not (dataset.num_classes or dataset.num_attributes):
        raise ValueError(
            f"model.conditional is set, but the data set {dataset.name!r} has no labels (CelebA's are named by "
            "data.attributes)"
        )
    images = len(dataset.shape) == 3
    if config.data.augment and not images:
        raise ValueError(f"data.augment is set, but {dataset.name!r} has no images to augment")
    if images != (settings.name != "mlp"):
        fitting = "unet" if images else "mlp"
        raise ValueError(
            f"model.name is {settings.name!r}, but one sample of {dataset.name!r} has shape {dataset.shape}; "
            f"use model.name={fitting}"
        )
    chain = {
        "chain": settings.chain,
        "steps": settings.chain_steps,
        "first": settings.chain_first,
        "last": settings.chain_last,
        "scale": settings.chain_scale,
    }
    own = {key: settings[key] for key in inspect.signature(network).parameters if key in settings}
    shape = dict(zip(("in_channels", "image_size") if images else ("dim",), dataset.shape, strict=False))
    pixels = dataset.quantizer
    levels: dict[str, Any] = {} if pixels is None else {"low": pixels.low, "high": pixels.high, "levels": pixels.levels}
    return Description(
        network=settings.name,
        options=own | shape | _conditions(config, dataset),
        process=config.sde.name,
        process_options=process_options(config),
        prediction=settings.prediction,
        conditioning=settings.conditioning,
        chain=chain if settings.conditioning == "chain" else {},
        sigma_data=settings.sigma_data,
        label_names=dataset.label_names if settings.conditional else (),
        dequantized=pixels is not None and config.data.dequantize,
        **levels,
    )


def _conditions(config: ConfigDict, dataset: Dataset) -> dict[str, int]:
    """What the network is told beside the noise level."""
    told = config.model.conditional
    return {
        "num_classes": dataset.num_classes if told else 0,
        "num_attributes": dataset.num_attributes if told else 0,
        "augment_dims": AUGMENTATION_DIMS if config.data.augment else 0,
    }


def build_model(config: ConfigDict, dataset: Dataset, device: torch.device) -> ScoreModel:
    """The network that fits the data, in its score wrapper; errors are those of ``describe_model``."""
    model = describe_model(config, dataset).build(resolve_precision(config.model.precision, device))
    recompute_blocks(model.net, config.training.checkpointing)
    return model


def build_state(config: ConfigDict, model: ScoreModel, together: Processes = ALONE) -> TrainState[ScoreModel]:
    """The model with a fresh Adam and moving averages, all of them in shares where the processes train by "fsdp".

    Raises:
        ValueError: training.averages is no list of averages, or has none for the snapshots that are asked for.
    """
    settings = config.training
    device = next(model.parameters()).device
    in_shares = settings.parallel == "fsdp" and together.count > 1
    if in_shares:
        model.cpu()  # where the averages are copied, so that none is ever whole on the device

    def cut(average: Average[ScoreModel]) -> Average[ScoreModel]:
        if in_shares:
            shard(average.model, together.count, device)
        return average

    ema = cut(EMA(model, settings.ema_decay))
    others = {name: cut(make(model)) for name, make in average_makers(config).items()}
    if in_shares:
        shard(model, together.count, device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return TrainState(model, optimizer, ema, others)


def average_makers(config: ConfigDict) -> dict[str, Callable[[nn.Module], Average]]:
    """Name -> what builds it, of the averages that are kept beside the one of ``training.ema_decay``.

    Raises:
        ValueError: training.averages is no list of averages, or has none for the snapshots that are asked for.
    """
    try:
        makers = parse_averages(config.training.averages)
    except ValueError as error:
        raise ValueError(f"training.averages: {error}") from error
    if config.training.ema_snapshot_every and not any(power_std(name) is not None for name in makers):
        raise ValueError(
            f"training.ema_snapshot_every is {config.training.ema_snapshot_every}, but snapshots are of averages by "
            "power functions, and training.averages has none; set it to power:0.05,power:0.1"
        )
    return makers


def build_loss(config: ConfigDict, sde: SDE) -> LossFn[ScoreModel]:
    """The training loss: score matching in continuous time, or DDPM's on a chain."""
    settings = config.training
    if settings.loss == "ddpm":
        objective = chain(sde, settings.ddpm_steps)
    elif settings.loss == "continuous":
        objective = continuous(
            sde,
            weighting=settings.weighting,
            time_law=settings.time_law,
            low_discrepancy=settings.low_discrepancy,
            importance=settings.importance,
        )
    else:
        raise ValueError(f"unknown training.loss {settings.loss!r}; choose from 'continuous', 'ddpm'")
    return training_loss(
        objective,
        augmentation=Augmentation(config.data.augment) if config.data.augment else None,
        conditional=config.model.conditional,
        label_dropout=settings.label_dropout,
        attribute_dropout=settings.attribute_dropout,
    )


def build_options(config: ConfigDict, dataset: Dataset) -> TrainOptions:
    """How to train; epochs become steps."""
    settings = config.training
    lookup(PARALLEL, settings.parallel, "training.parallel")
    if config.data.random_flip and len(dataset.shape) != 3:
        raise ValueError(f"data.random_flip is set, but {dataset.name!r} has no images to flip")
    if (settings.steps > 0) == (settings.epochs > 0):
        raise ValueError(
            f"training.steps is {settings.steps} and training.epochs {settings.epochs}: set one of them, the other to 0"
        )
    steps = settings.steps or math.ceil(settings.epochs * len(dataset) / settings.batch_size)
    if settings.ema_snapshot_every > steps:
        raise ValueError(
            f"training.ema_snapshot_every is {settings.ema_snapshot_every}, but training ends at step {steps}, before "
            f"the first snapshot; give at most that, such as {max(steps // 50, 1)}, or 0 for none"
        )
    return TrainOptions(
        steps=steps,
        batch_size=settings.batch_size,
        accumulation=settings.accumulation,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay=settings.decay,
        grad_clip=settings.grad_clip,
        seed=config.seed,
        dequantize=config.data.dequantize,
        flip=config.data.random_flip,
        workers=config.data.workers,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        snapshot_every=settings.ema_snapshot_every,
        sample_every=settings.sample_every,
        heldout_every=settings.heldout_every,
        evaluate_every=settings.evaluate_every,
        time_limit=settings.time_limit,
        cuda_graph=records_graph(config),
    )


def records_graph(config: ConfigDict) -> bool:
    """Whether a step may become a CUDA graph."""
    # checkpointing asks for dropout's state, and augmentation which images it moved: a graph cannot
    return config.training.cuda_graph and not config.training.checkpointing and not config.data.augment


def resolve_device(name: str, local: int | None = None) -> torch.device:
    """A torch device; "auto" is CUDA where there is one, and of several GPUs process ``local`` takes the next.

    Raises:
        ValueError: the name is not that of a device, or this machine does not have it.
    """
    if name in SPREAD and torch.cuda.is_available():
        return torch.device("cuda" if local is None else f"cuda:{local % torch.cuda.device_count()}")
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        torch.Generator(device)  # the device "meta", which has no values, has no generator either
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); choose auto, cpu or cuda") from error
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision of the network; "auto" is bfloat16 where the hardware multiplies in it, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # without these units bfloat16 is emulated, at a small fraction of float32's speed
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        native = device.type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return "bfloat16" if native else "float32"
