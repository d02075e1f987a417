"""From the section ``likelihood`` of a configuration to what is computed, and how."""

from typing import Any

import torch
from ml_collections import ConfigDict

from data import Dataset
from models import PRECISIONS
from sde_lib import SDE, ddpm_schedule, log_likelihood, lookup

ESTIMATES = {"ode": ("ode",), "elbo": ("elbo",), "ddpm": ("ddpm",), "all": ("ode", "elbo", "ddpm")}
"""likelihood.estimate -> what is computed."""
DEQUANTIZATIONS = ("uniform", "truncated_normal", "variational")
"""likelihood.dequantization -> how levels become densities."""
LIKELIHOOD_OPTIONS = ("divergence", "probes", "noise", "method", "steps", "rtol", "atol", "log_prob_care", "max_nfe")
"""Settings of the section ``likelihood`` that ``log_likelihood`` takes."""


def likelihood_options(config: ConfigDict) -> dict[str, Any]:
    """Options of ``log_likelihood``, as the section ``likelihood`` asks for."""
    return {key: config.likelihood[key] for key in LIKELIHOOD_OPTIONS}


def check_likelihood(config: ConfigDict, sde: SDE, documented: ConfigDict) -> None:
    """Fail now on settings of the likelihood that cannot work; those of the documented default need no trial."""
    settings, options = config.likelihood, likelihood_options(config)
    if options != likelihood_options(documented):
        log_likelihood(sde, lambda x, t: 0 * x, torch.zeros(1, 1), **options)
    lookup(ESTIMATES, settings.estimate, "likelihood.estimate")
    lookup(PRECISIONS, settings.precision, "likelihood.precision")
    dequantization(config)
    if settings.estimate == "ddpm":
        ddpm_chain(config, sde)
    if settings.codes and settings.estimate not in ("ode", "all"):
        raise ValueError(
            f"likelihood.codes is set, but the estimate {settings.estimate!r} has no latent codes; use ode"
        )


def warn_of_dequantization(config: ConfigDict) -> None:
    """Print a note if the model was trained on another kind of data than the dequantisation makes."""
    kind = dequantization(config)
    if (kind == "truncated_normal") == config.data.dequantize:
        trained = "dequantised levels" if config.data.dequantize else "levels as points"
        print(f"note: the model was trained on {trained}, for which {kind!r} is not the fitting dequantisation")


def warn_of_fewer(setting: str, asked: int, dataset: Dataset, split: str) -> None:
    """Print a note if a setting asks for more images than there are."""
    if asked > len(dataset):
        print(f"note: {setting} is {asked}, but the split {split!r} has {len(dataset)} samples; all of them are taken")


def ddpm_chain(config: ConfigDict, sde: SDE) -> int:
    """Length of DDPM's chain, ``training.ddpm_steps``, after a check that the process has such a chain."""
    return ddpm_schedule(sde, config.training.ddpm_steps).steps


def dequantization(config: ConfigDict) -> str:
    """The dequantisation that is asked for, or the one that fits how the model was trained."""
    name = config.likelihood.dequantization or ("uniform" if config.data.dequantize else "truncated_normal")
    return lookup({kind: kind for kind in DEQUANTIZATIONS}, name, "likelihood.dequantization")
