"""Checkpoints of score_sde_pytorch (arXiv 2011.13456): its DDPM, DDPM++ and NCSN++ networks on VP, sub-VP and VE.

A ``.pth`` file holds ``model`` (the network under DataParallel), ``ema`` (the averaged parameters as a list, without
names), ``optimizer`` and ``step``. Its configuration is a Python file of that project: give it by name (``published``),
or as values, with or without its sections.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.description import Description
from models.layers import ResidualBlock, SelfAttention
from models.ncsnpp import NCSNpp
from models.ncsnpp_layers import FourierEmbedding
from models.pretrained.files import Pretrained, PretrainedError, Source, arrange, describing, one, read_torch, skeleton
from models.pretrained.kinds import COUNT, COUNTS, FLAG, NUMBERS, POSITIVE, SHARE, TEXT, check
from sde_lib import lookup

PROCESSES = {
    "vpsde": ("vp", ("beta_min", "beta_max")),
    "subvpsde": ("subvp", ("beta_min", "beta_max")),
    "vesde": ("ve", ("sigma_min", "sigma_max")),
}
"""Their name -> ours, and its options, which have the same names."""
KINDS = {
    "nf": COUNT,
    "ch_mult": COUNTS,
    "num_res_blocks": COUNT,
    "attn_resolutions": COUNTS,
    "dropout": SHARE,
    "image_size": COUNT,
    "num_channels": COUNT,
    "centered": FLAG,
    "continuous": FLAG,
    "scale_by_sigma": FLAG,
    "skip_rescale": FLAG,
    "fir": FLAG,
    "fir_kernel": NUMBERS,
    "fourier_scale": POSITIVE,
    "num_scales": COUNT,
    "sigma_min": POSITIVE,
    "sigma_max": POSITIVE,
    "beta_min": POSITIVE,
    "beta_max": POSITIVE,
    "sde": TEXT,
}
"""Option -> what it takes."""
MUST_BE = {
    "attention_type": "ddpm",
    "conditional": True,
    "conv_size": 3,
    "nonlinearity": "swish",
    "normalization": "GroupNorm",
    "resamp_with_conv": True,
}
"""Option -> the value with which it is our network, and which all published ones have."""
PYRAMIDS = {"none": "none", "output_skip": "skip", "input_skip": "skip", "residual": "residual"}
RES_BLOCK = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "modulate",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
}


def read(path: Path, config: Mapping[str, Any] | None) -> Pretrained:
    """The network of a checkpoint: its averaged weights and those that were trained.

    Raises:
        PretrainedError: no or another configuration, or a file that does not fit it.
    """
    if config is None:
        raise PretrainedError(
            f"{path} does not hold its configuration; give config= (--source_config): a published name, or its values"
        )
    with describing("the configuration"):
        flat = flattened(config)
        description = describe(flat)
        net = cast(NCSNpp, skeleton(description))
    content = read_torch(path)
    if not isinstance(content, Mapping) or not {"model", "ema"} <= set(content):
        raise PretrainedError(f"{path} is no checkpoint of score_sde_pytorch: it needs the entries model and ema")
    trained, averaged = by_name(content, path)
    places = sources(net, negated=predicts_minus_eps(flat))
    step = content.get("step", 0)
    if not COUNT.fits(step) and step != 0:
        raise PretrainedError(f"{path}: step is {step!r}; it must be a whole number")
    return Pretrained(
        description,
        arrange(net, places, averaged, path),
        arrange(net, places, trained, path),
        step,
    )


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the sections data, training and model, or of a mapping without sections, by their names."""
    if "model" not in config:
        return dict(config)
    return {**config["model"], **config["data"], **config["training"]}


def describe(config: Mapping[str, Any]) -> Description:
    """The score model of a configuration.

    A configuration without the name of its process has that of its network: scaling by sigma is for VE.
    """
    check(config, KINDS)
    name = config.get("sde", "vesde" if config["scale_by_sigma"] else "vpsde").lower()
    if name not in PROCESSES:
        raise PretrainedError(f"the process {name!r} is not known; only {', '.join(PROCESSES)} are")
    process, options = PROCESSES[name]
    prediction, conditioning = meaning(config, process)
    return Description(
        "ncsnpp",
        network_options(config),
        process,
        {option: config[option] for option in options},
        prediction,
        conditioning,
        chain_options(config) if conditioning == "chain" else {},
        low=-1.0 if config["centered"] else 0.0,
    )


def meaning(config: Mapping[str, Any], process: str) -> tuple[str, str]:
    """What the output means and what the network is told: the score is -F / sigma on VP and sub-VP, and F on VE.

    A discrete network on VP is told the step of its chain. A VE network with positional embedding whose output is
    divided by sigma from a table predicts minus the noise.
    """
    positional = _positional(config)
    if process != "ve":
        if config["scale_by_sigma"] or not positional:
            raise PretrainedError("a VP or sub-VP network has positional embedding, and no scale_by_sigma")
        return "eps", "time" if config["continuous"] or process == "subvp" else "chain"
    if config["continuous"] == positional:
        raise PretrainedError("a VE network is continuous with Fourier embedding, or discrete with positional one")
    if positional and config["num_scales"] != 1000:
        raise PretrainedError(f"a discrete VE network of {config['num_scales']} levels; only 1000 can be read")
    if positional:
        return "eps" if predicts_minus_eps(config) else "score", "time_left"
    return "score", "log_sigma"


def predicts_minus_eps(config: Mapping[str, Any]) -> bool:
    """Whether the last layer must change its sign to predict the noise."""
    return bool(config["scale_by_sigma"]) and _positional(config)


def _positional(config: Mapping[str, Any]) -> bool:
    """The network "ddpm" always is, whatever its configuration says."""
    return config["name"] == "ddpm" or config["embedding_type"] == "positional"


def chain_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``ChainIndex``, for a discrete network on VP."""
    steps = config["num_scales"]
    return {"steps": steps, "first": config["beta_min"] / steps, "last": config["beta_max"] / steps}


def network_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``NCSNpp``."""
    for option, accepted in MUST_BE.items():
        if config.get(option, accepted) != accepted:
            raise PretrainedError(f"{option} is {config[option]!r}; only {accepted!r} can be read")
    options = {
        "in_channels": config["num_channels"],
        "image_size": config["image_size"],
        "channels": config["nf"],
        "channel_mult": tuple(config["ch_mult"]),
        "res_blocks": config["num_res_blocks"],
        "attention_resolutions": tuple(config["attn_resolutions"]),
        "dropout": config["dropout"],
        "centered": config["centered"],
    }
    if config["name"] == "ddpm":
        return options | {"block": "ddpm", "fir": (), "skip_rescale": False, "groups": 32}
    if config["name"] != "ncsnpp":
        raise PretrainedError(f"networks of the kind {config['name']!r} are not known; only 'ddpm' and 'ncsnpp' are")
    return options | {
        "block": config["resblock_type"],
        "fir": tuple(config["fir_kernel"]) if config["fir"] else (),
        "skip_rescale": config["skip_rescale"],
        "progressive": lookup(PYRAMIDS, config["progressive"], "progressive"),
        "progressive_input": lookup(PYRAMIDS, config["progressive_input"], "progressive_input"),
        "combine": config["progressive_combine"],
        "embedding": config["embedding_type"],
        "fourier_scale": float(config["fourier_scale"]),
        "scale_by_sigma": config["scale_by_sigma"] and not _positional(config),
    }


def by_name(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trained parameters, and their averages, whose list follows the names of those that are trained."""
    try:
        named = {name.removeprefix("module."): value for name, value in content["model"].items()}
        shadow = list(content["ema"]["shadow_params"])
    except (AttributeError, KeyError, TypeError) as error:
        raise PretrainedError(f"{path} has no model by name, or no list of averaged parameters ({error})") from error
    named.pop("sigmas", None)
    odd = [name for name, value in named.items() if not isinstance(value, Tensor)]
    if odd or not all(isinstance(value, Tensor) for value in shadow):
        raise PretrainedError(f"{path}: {odd[0] if odd else 'an average'} is no tensor")
    fixed = {name: value for name, value in named.items() if name.endswith(".W") and value.ndim == 1}
    moving = [name for name in named if name not in fixed]
    if len(moving) != len(shadow):
        raise PretrainedError(f"{path} has {len(shadow)} averaged parameters for {len(moving)} of its model")
    for name, value in zip(moving, shadow, strict=True):
        if value.shape != named[name].shape:
            raise PretrainedError(
                f"{path}: the average of {name} has shape {tuple(value.shape)}, not {tuple(named[name].shape)}"
            )
    return named, fixed | dict(zip(moving, shadow, strict=True))


def units(net: NCSNpp) -> Iterator[tuple[str, nn.Module]]:
    """The parts that the project numbers, in its order, with their names in our network."""
    if isinstance(net.embed.waves, FourierEmbedding):
        yield "embed.waves", net.embed.waves
    yield "embed.mlp.0", net.embed.mlp[0]
    yield "embed.mlp.2", net.embed.mlp[2]
    for room in ("encoder", "middle", "decoder"):
        for name, part in getattr(net, room).named_children():
            yield f"{room}.{name}", part
    if net.progressive != "skip":
        yield "norm", net.norm
        yield "head", net.head


def sources(net: NCSNpp, negated: bool = False) -> dict[str, Source]:
    """Name in our network -> its source in the file; the last layers may change their sign."""
    found: dict[str, Source] = {}
    for number, (name, part) in enumerate(units(net)):
        theirs = f"all_modules.{number}"
        if isinstance(part, FourierEmbedding):
            found[f"{name}.frequencies"] = one(f"{theirs}.W")
        elif isinstance(part, ResidualBlock):
            found |= _res_block(name, theirs, part, net.block)
        elif isinstance(part, SelfAttention):
            found |= _attention(name, theirs)
        else:
            conv = "Conv_0" if not _filtered(part) else "Conv2d_0"
            inner = isinstance(part, nn.Conv2d) and name.endswith("_pyramid")  # the combiner
            for kind in ("weight", "bias"):
                if hasattr(part, "conv"):
                    found[f"{name}.conv.{kind}"] = one(f"{theirs}.{conv}.{kind}")
                else:
                    found[f"{name}.{kind}"] = one(f"{theirs}.{'Conv_0.' if inner else ''}{kind}")
                    if negated and (name == "head" or name.endswith("_image")):
                        found[f"{name}.{kind}"] = Source(found[f"{name}.{kind}"].names, torch.neg)
    return found


def _filtered(part: nn.Module) -> bool:
    """Whether the project has this as its own convolution with a FIR filter."""
    return getattr(getattr(part, "resample", part), "taps", None) is not None


def _res_block(name: str, theirs: str, part: ResidualBlock, block: str) -> dict[str, Source]:
    found = {
        f"{name}.{own}.{kind}": one(f"{theirs}.{other}.{kind}")
        for other, own in RES_BLOCK.items()
        for kind in ("weight", "bias")
    }
    if isinstance(part.shortcut, nn.Conv2d):
        if block == "biggan":
            found |= {f"{name}.shortcut.{kind}": one(f"{theirs}.Conv_2.{kind}") for kind in ("weight", "bias")}
        else:
            found[f"{name}.shortcut.weight"] = Source((f"{theirs}.NIN_0.W",), _pointwise)
            found[f"{name}.shortcut.bias"] = one(f"{theirs}.NIN_0.b")
    return found


def _attention(name: str, theirs: str) -> dict[str, Source]:
    parts = [f"{theirs}.NIN_{k}" for k in range(4)]
    return {
        f"{name}.norm.weight": one(f"{theirs}.GroupNorm_0.weight"),
        f"{name}.norm.bias": one(f"{theirs}.GroupNorm_0.bias"),
        f"{name}.qkv.weight": Source(tuple(f"{part}.W" for part in parts[:3]), _pointwise),
        f"{name}.qkv.bias": Source(tuple(f"{part}.b" for part in parts[:3]), lambda *values: torch.cat(values)),
        f"{name}.proj.weight": Source((f"{parts[3]}.W",), _pointwise),
        f"{name}.proj.bias": one(f"{parts[3]}.b"),
    }


def _pointwise(*matrices: Tensor) -> Tensor:
    """(in, out) matrices as one 1x1 convolution (sum of out, in, 1, 1)."""
    return torch.cat([matrix.T for matrix in matrices])[..., None, None]
