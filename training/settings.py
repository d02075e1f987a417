"""What no type can say of a configuration: its keys, ranges, and the elements of its tuples."""

import math
from collections.abc import Mapping
from typing import Any

AT_LEAST: dict[str, float] = {
    "threads": 0,
    "data.image_size": 1,
    "data.channels": 1,
    "data.size": 1,
    "data.levels": 2,
    "data.classes": 0,
    "data.workers": 0,
    "data.augment": 0,
    "model.channels": 1,
    "model.res_blocks": 1,
    "model.heads": 1,
    "model.groups": 1,
    "model.head_channels": 1,
    "model.chain_steps": 2,
    "model.embedding_steps": 2,
    "model.downsample_padding": 0,
    "model.patch_size": 1,
    "model.depth": 1,
    "model.mlp_ratio": 1,
    "model.width": 1,
    "model.blocks": 1,
    "model.dropout": 0,
    "training.steps": 0,
    "training.epochs": 0,
    "training.batch_size": 1,
    "training.accumulation": 1,
    "training.weight_decay": 0,
    "training.warmup_steps": 0,
    "training.grad_clip": 0,
    "training.ema_decay": 0,
    "training.ema_snapshot_every": 0,
    "training.ddpm_steps": 2,
    "training.label_dropout": 0,
    "training.attribute_dropout": 0,
    "training.log_every": 1,
    "training.checkpoint_every": 1,
    "training.keep_checkpoints": 1,
    "training.sample_every": 0,
    "training.heldout_every": 0,
    "training.heldout_images": 0,
    "training.evaluate_every": 0,
    "training.evaluate_images": 2,
    "training.time_limit": 0,
    "sampling.num_images": 1,
    "sampling.guidance": 0,
    "sampling.guidance_low": 0,
    "sampling.guidance_high": 0,
    "sampling.batch_size": 1,
    "sampling.steps": 1,
    "sampling.t_end": 0,
    "sampling.t_start": 0,
    "sampling.corrector_steps": 0,
    "sampling.eta": 0,
    "sampling.churn": 0,
    "sampling.churn_min": 0,
    "sampling.churn_max": 0,
    "sampling.order": 1,
    "sampling.trajectory": 0,
    "sampling.max_nfe": 1,
    "likelihood.num_images": 0,
    "likelihood.batch_size": 1,
    "likelihood.probes": 1,
    "likelihood.steps": 1,
    "likelihood.max_nfe": 1,
    "likelihood.repeats": 1,
    "likelihood.check": 0,
    "likelihood.samples": 1,
    "evaluation.reference_images": 0,
    "evaluation.num_images": 2,
    "evaluation.draws": 1,
    "averaging.step": 0,
    "doctor.num_images": 0,
    "interpolation.first": 0,
    "interpolation.pairs": 1,
    "interpolation.moments": 2,
    "editing.num_images": 1,
    "editing.noise": 0,
    "editing.factor": 2,
    "editing.scale": 0,
    "editing.iterations": 1,
    "reporting.training_images": 0,
    "dequantizer.steps": 1,
    "dequantizer.batch_size": 1,
    "dequantizer.ema_decay": 0,
    "dequantizer.channels": 4,
    "dequantizer.layers": 2,
}
ABOVE_ZERO = (
    "model.fourier_scale",
    "model.sigma_data",
    "model.norm_eps",
    "model.chain_first",
    "model.chain_last",
    "model.chain_scale",
    "training.learning_rate",
    "training.eps",
    "sampling.snr",
    "sampling.rho",
    "sampling.limit",
    "sampling.quantile",
    "sampling.noise_scale",
    "sampling.first_step",
    "sampling.rtol",
    "sampling.atol",
    "likelihood.rtol",
    "likelihood.atol",
    "likelihood.log_prob_care",
    "interpolation.rtol",
    "interpolation.atol",
    "editing.blur",
    "editing.sigma_data",
    "dequantizer.learning_rate",
)
BELOW_ONE = (
    "data.holdout",
    "model.dropout",
    "training.beta1",
    "training.beta2",
    "training.ema_decay",
    "dequantizer.ema_decay",
    "sampling.t_end",
)
AT_MOST_ONE = ("data.augment", "training.label_dropout", "training.attribute_dropout")
FRACTIONS = ("model.channel_mult",)
"""Tuples whose elements need not be whole."""
AUTO = "auto"
LEFT_OPEN = ("training.batch_size", "training.accumulation")
"""What is a whole number, or ``AUTO``: found where a run begins."""


def check(config: Mapping[str, Any], default: Mapping[str, Any], prefix: str = "") -> None:
    """Compare a configuration with the documented default.

    Args:
        config: nested plain values.
        default: the same of configs/default.py.
        prefix: of the keys, while descending.

    Raises:
        ValueError: a key is missing or unknown, or a value out of range.
        TypeError: a value of another type than the default's.
    """
    odd = sorted(set(config) ^ set(default))
    if odd:
        kind = "unknown" if odd[0] in config else "missing"
        raise ValueError(f"{kind} config key {prefix}{odd[0]}; configs/default.py lists them all: {', '.join(default)}")
    for key, expected in default.items():
        value, name = config[key], prefix + key
        if isinstance(expected, Mapping):
            if not isinstance(value, Mapping):
                raise TypeError(f"config.{name} is a section; set its keys one by one, as --config.{name}.KEY=VALUE")
            check(value, expected, f"{name}.")
        elif value is None:
            if expected is not None:
                raise TypeError(f"config.{name} is None; it takes a {type(expected).__name__} such as {expected!r}")
        else:
            _check_value(name, value, expected)


def _check_value(name: str, value: Any, expected: Any) -> None:
    if name in LEFT_OPEN and type(value) is not int:
        if value != AUTO:
            raise TypeError(f"config.{name} is {value!r}; it takes a whole number such as {expected!r}, or {AUTO}")
        return
    if isinstance(expected, tuple):
        kinds, words = ((int, float), "numbers") if name in FRACTIONS else ((int,), "whole numbers")
        if not isinstance(value, tuple) or not all(type(item) in kinds and item > 0 for item in value):
            raise TypeError(f"config.{name} is {value!r}; it takes {words} above 0, such as {expected!r}")
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"config.{name} is {value!r}; it must fit in 64 bits")
    if not math.isfinite(value):
        raise ValueError(f"config.{name} is {value!r}; it must be finite")
    low = AT_LEAST.get(name, -math.inf)
    if value < low:
        raise ValueError(f"config.{name} is {value!r}; it must be at least {low:g}")
    if name in ABOVE_ZERO and value <= 0:
        raise ValueError(f"config.{name} is {value!r}; it must be above 0")
    if name in AT_MOST_ONE and value > 1:
        raise ValueError(f"config.{name} is {value!r}; it must be at most 1")
    if name in BELOW_ONE and not 0 <= value < 1:
        raise ValueError(f"config.{name} is {value!r}; it must lie in [0, 1)")
