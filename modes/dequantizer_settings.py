"""From the section ``dequantizer`` of a configuration to a variational dequantiser and its training."""

import math

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from data import Dataset, Quantizer, StepDraws
from models import EMA, ScoreModel, VariationalDequantizer
from modes.labels import told_labels
from sde_lib import SDE, elbo
from training import RunFolder, TrainOptions, load_checkpoint, load_weights
from training.gradient import LossFn
from training.state import TrainState


def build_dequantizer_state(
    config: ConfigDict, dataset: Dataset, device: torch.device
) -> TrainState[VariationalDequantizer]:
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
        cuda_graph=False,  # its bound looks at what it computes
    )


def build_dequantizer_loss(
    config: ConfigDict, sde: SDE, model: ScoreModel, quantizer: Quantizer
) -> LossFn[VariationalDequantizer]:
    """The bound -(elbo(x) - log q(x | v)) in bits/dim, x drawn by the dequantiser."""
    eps_fn = told_labels(config, model.eps)

    def loss_fn(network: nn.Module, x0: Tensor, y: Tensor | None, draws: StepDraws) -> Tensor:
        v = quantizer.decode(x0)
        x, log_q = network(v, draws.uniform("place", v.shape[1:]))
        noise = torch.stack([draws.normal_like(name, x) for name in ("noise", "reconstruction")])
        bound = elbo(sde, lambda x, t: eps_fn(x, t, y), x, samples=1, u=draws.uniform("offset", ()), eps=noise).log_prob
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
