"""From a configuration to objects: the one place where config keys meet the signatures of the rooms."""

import hashlib
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from data import Dataset, Quantizer, dataset_options, get_dataset
from models import EMA, MODELS, PRECISIONS, ScoreModel, VariationalDequantizer
from samplers import GRIDS, Sampler, get_sampler, sampler_options
from sde_lib import (
    SDE,
    SDES,
    TIME_LAWS,
    WEIGHTINGS,
    LikelihoodResult,
    ddpm_loss,
    ddpm_schedule,
    dsm_loss,
    elbo,
    log_likelihood,
    lookup,
)
from training.checkpoint import load_checkpoint, load_weights
from training.loop import LossFn, TrainOptions
from training.run_folder import RunFolder
from training.state import TrainState

GENERAL = ("sampler", "num_images", "batch_size", "seed", "trajectory")
"""Settings of sampling that are not the sampler's."""


@dataclass(frozen=True)
class Experiment:
    """What a configuration describes: the process, the model (untrained), the training data, and the device."""

    sde: SDE
    model: ScoreModel
    dataset: Dataset
    device: torch.device


def build_experiment(config: ConfigDict) -> Experiment:
    """Build everything that all modes need, with weights that depend on ``config.seed`` only."""
    if config.threads:
        torch.set_num_threads(config.threads)
    dataset = build_dataset(config, "train")
    sde = build_sde(config)
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    model = build_model(config, sde, dataset, device).to(device)
    return Experiment(sde, model, dataset, device)


def build_sde(config: ConfigDict) -> SDE:
    """The process; settings left at None take the process's own defaults.

    Raises:
        ValueError: unknown process, or a setting that it does not have.
    """
    process = lookup(SDES, config.sde.name, "process (sde.name)")
    accepted = inspect.signature(process).parameters
    given = {key: value for key, value in config.sde.items() if key != "name" and value is not None}
    foreign = [key for key in given if key not in accepted]
    if foreign:
        raise ValueError(
            f"sde.{foreign[0]} is set, but the process {config.sde.name!r} has no such setting; "
            f"it takes {', '.join(accepted)}"
        )
    return process(**given)


def build_dataset(config: ConfigDict, split: str) -> Dataset:
    """A split of the data set; it gets those settings of ``config.data`` that it has."""
    accepted = dataset_options(config.data.name)
    return get_dataset(config.data.name, split, **{key: config.data[key] for key in accepted if key in config.data})


def build_model(config: ConfigDict, sde: SDE, dataset: Dataset, device: torch.device) -> ScoreModel:
    """The network that fits the data, in its score wrapper.

    Raises:
        ValueError: unknown names, or a network for data of another kind.
    """
    settings = config.model
    network = lookup(MODELS, settings.name, "network (model.name)")
    if settings.conditional and not dataset.num_classes:
        raise ValueError(f"model.conditional is set, but the data set {dataset.name!r} has no labels")
    shared = {"dropout": settings.dropout, "num_classes": dataset.num_classes if settings.conditional else 0}
    images = len(dataset.shape) == 3
    if images != (settings.name != "mlp"):
        fitting = "unet" if images else "mlp"
        raise ValueError(
            f"model.name is {settings.name!r}, but one sample of {dataset.name!r} has shape {dataset.shape}; "
            f"use model.name={fitting}"
        )
    if images:
        net = network(
            dataset.shape[0],
            dataset.shape[1],
            channels=settings.channels,
            channel_mult=settings.channel_mult,
            res_blocks=settings.res_blocks,
            attention_resolutions=settings.attention_resolutions,
            heads=settings.heads,
            **shared,
        )
    else:
        net = network(dataset.shape[0], width=settings.width, blocks=settings.blocks, **shared)
    return ScoreModel(
        net,
        sde,
        settings.prediction,
        settings.conditioning,
        sigma_data=settings.sigma_data,
        precision=resolve_precision(settings.precision, device),
    )


def build_state(config: ConfigDict, model: ScoreModel) -> TrainState:
    """The model with a fresh Adam and moving average."""
    settings = config.training
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return TrainState(model, optimizer, EMA(model, settings.ema_decay))


def build_loss(config: ConfigDict, sde: SDE) -> LossFn:
    """The training loss: score matching in continuous time, or DDPM's on a chain."""
    settings = config.training
    if settings.loss == "ddpm":
        loss = partial(ddpm_loss, ddpm_schedule(sde, settings.ddpm_steps))
    elif settings.loss == "continuous":
        lookup(WEIGHTINGS, settings.weighting, "training.weighting")
        lookup(TIME_LAWS, settings.time_law, "training.time_law")
        loss = partial(
            dsm_loss,
            sde,
            weighting=settings.weighting,
            time_law=settings.time_law,
            low_discrepancy=settings.low_discrepancy,
            importance=settings.importance,
        )
    else:
        raise ValueError(f"unknown training.loss {settings.loss!r}; choose from 'continuous', 'ddpm'")
    conditional = config.model.conditional

    def loss_fn(model: ScoreModel, x0: Tensor, y: Tensor | None, generator: torch.Generator) -> Tensor:
        return loss(partial(model.eps, y=y if conditional else None), x0, generator=generator)

    return loss_fn


def build_options(config: ConfigDict, dataset: Dataset) -> TrainOptions:
    """How to train; epochs become steps."""
    settings = config.training
    if config.data.random_flip and len(dataset.shape) != 3:
        raise ValueError(f"data.random_flip is set, but {dataset.name!r} has no images to flip")
    if (settings.steps > 0) == (settings.epochs > 0):
        raise ValueError(
            f"training.steps is {settings.steps} and training.epochs {settings.epochs}: set one of them, the other to 0"
        )
    steps = settings.steps or math.ceil(settings.epochs * len(dataset) / settings.batch_size)
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
        sample_every=settings.sample_every,
        time_limit=settings.time_limit,
    )


def build_sampler(config: ConfigDict, sde: SDE, **changes: Any) -> Sampler:
    """The sampler; it gets those settings of ``config.sampling`` that it has and that are not None, and ``changes``."""
    settings = {**config.sampling.to_dict(), **changes}
    name = settings["sampler"]
    given = {key: settings[key] for key in sampler_options(name) if settings.get(key) is not None}
    sampler = get_sampler(name, **given)
    sampler.time_grid(sde)  # a grid that cannot be made fails here, not after the training
    return sampler


def sampler_settings(config: ConfigDict, default: ConfigDict, sde: SDE) -> tuple[dict[str, Any], str]:
    """What the chosen sampler works with, and a mark for file names.

    Returns:
        its settings with the grid's times, and the settings that all samplers share; the mark is empty where all but
        the number of steps are the defaults, else "_" and a hash of them.
    """
    sampling, sampler = config.sampling, build_sampler(config, sde)
    own = {key: sampling[key] for key in sampler_options(sampling.sampler)}
    changed = {key: value for key, value in own.items() if key != "steps" and value != default.sampling[key]}
    digest = hashlib.blake2b(json.dumps(changed, sort_keys=True).encode(), digest_size=3).hexdigest()
    general = {key: sampling[key] for key in GENERAL}
    resolved = {"steps": sampler.steps, "grid": sampler.grid, "times": sampler.time_grid(sde).tolist()}
    return general | own | resolved, f"_{digest}" if changed else ""


def unused_settings(config: ConfigDict, default: ConfigDict) -> list[str]:
    """Keys of ``config.sampling`` that differ from the default though the chosen sampler makes no use of them."""
    sampling, sde = config.sampling, build_sde(config)
    sampler = build_sampler(config, sde)
    used = {*GENERAL, *sampler_options(sampling.sampler)}
    if sampler.step_count(sde) is None:  # adaptive
        used -= {"steps", "grid", "rho"}
    if sampler.grid not in GRIDS:  # the times themselves
        used = used - {"steps", "t_end", "rho"} | {"grid"}
    return [key for key, value in sampling.items() if key not in used and value != default.sampling[key]]


LIKELIHOOD_OPTIONS = (
    "divergence",
    "probes",
    "noise",
    "method",
    "steps",
    "rtol",
    "atol",
    "log_prob_care",
    "max_nfe",
)
"""Settings of the section ``likelihood`` that ``log_likelihood`` takes."""


def likelihood_options(config: ConfigDict) -> dict[str, Any]:
    """Options of ``log_likelihood``, as the section ``likelihood`` asks for."""
    return {key: config.likelihood[key] for key in LIKELIHOOD_OPTIONS}


def build_log_prob(config: ConfigDict, sde: SDE) -> Callable[..., LikelihoodResult]:
    """(score_fn, x, generator=...) -> log-likelihood, as the section ``likelihood`` asks for."""
    return partial(log_likelihood, sde, **likelihood_options(config))


def check_likelihood(config: ConfigDict, sde: SDE) -> None:
    """Fail now on settings of the likelihood that cannot work."""
    settings = config.likelihood
    build_log_prob(config, sde)(lambda x, t: 0 * x, torch.zeros(1, 1))
    lookup(dict.fromkeys(("ode", "elbo", "ddpm", "all")), settings.estimate, "likelihood.estimate")
    lookup(PRECISIONS, settings.precision, "likelihood.precision")
    dequantization(config)
    if settings.estimate == "ddpm":
        ddpm_chain(config, sde)
    if settings.codes and settings.estimate not in ("ode", "all"):
        raise ValueError(
            f"likelihood.codes is set, but the estimate {settings.estimate!r} has no latent codes; use ode"
        )


def ddpm_chain(config: ConfigDict, sde: SDE) -> int:
    """Length of DDPM's chain, ``training.ddpm_steps``, after a check that the process has such a chain."""
    return ddpm_schedule(sde, config.training.ddpm_steps).steps  # type: ignore[arg-type]


def dequantization(config: ConfigDict) -> str:
    """The dequantisation that is asked for, or the one that fits how the model was trained."""
    name = config.likelihood.dequantization or ("uniform" if config.data.dequantize else "truncated_normal")
    return lookup({kind: kind for kind in DEQUANTIZATIONS}, name, "likelihood.dequantization")


DEQUANTIZATIONS = ("uniform", "truncated_normal", "variational")


def build_dequantizer_state(config: ConfigDict, dataset: Dataset, device: torch.device) -> TrainState:
    """A fresh variational dequantiser with its Adam and moving average; its seed is the run's."""
    settings, quantizer = config.dequantizer, dataset.quantizer
    if quantizer is None or len(dataset.shape) != 3:
        raise ValueError(f"{dataset.name!r} has no levels to dequantise")
    torch.manual_seed(config.seed)
    network = VariationalDequantizer(
        (dataset.shape[0], dataset.shape[1], dataset.shape[2]),
        levels=quantizer.levels,
        low=quantizer.low,
        high=quantizer.high,
        channels=settings.channels,
        layers=settings.layers,
    ).to(device)
    return TrainState(network, torch.optim.Adam(network.parameters()), EMA(network, settings.ema_decay))


def build_dequantizer_options(config: ConfigDict) -> TrainOptions:
    """How to train the dequantiser: on levels, which the loss dequantises itself."""
    settings = config.dequantizer
    return TrainOptions(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        decay="linear",
        seed=config.seed,
        workers=config.data.workers,
        checkpoint_every=settings.steps,
        log_every=config.training.log_every,
    )


def build_dequantizer_loss(config: ConfigDict, sde: SDE, model: ScoreModel, quantizer: Quantizer) -> LossFn:
    """The bound -(elbo(x) - log q(x | v)) in bits/dim, x drawn by the dequantiser."""
    conditional = config.model.conditional

    def loss_fn(network: nn.Module, x0: Tensor, y: Tensor | None, generator: torch.Generator) -> Tensor:
        v = quantizer.decode(x0)
        x, log_q = network(v, torch.rand(v.shape, generator=generator, device=v.device))
        eps_fn = partial(model.eps, y=y if conditional else None)
        bound = elbo(sde, eps_fn, x, samples=1, generator=generator).log_prob
        return (log_q - bound) / (x[0].numel() * math.log(2))

    return loss_fn


def trained_dequantizer(config: ConfigDict, dataset: Dataset, folder: RunFolder, device: torch.device) -> nn.Module:
    """The averaged weights of the run's variational dequantiser.

    Raises:
        ValueError: none has been trained.
    """
    newest = folder.dequantizer.latest()
    if newest is None:
        raise ValueError(
            f"no dequantiser in {folder.dequantizer.folder}; train one first, by --mode=dequantizer on this run"
        )
    network = build_dequantizer_state(config, dataset, device).ema.model
    load_weights(network, load_checkpoint(newest)[0]["ema"], newest)
    return network


def resolve_device(name: str) -> torch.device:
    """A torch device; "auto" is CUDA where there is one.

    Raises:
        ValueError: the name is not that of a device, or this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
