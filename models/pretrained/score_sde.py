"""Checkpoints of score_sde_pytorch (arXiv 2011.13456): its DDPM, DDPM++ and NCSN++ networks on VP, sub-VP and VE.

A ``.pth`` file holds ``model`` (the network under DataParallel), ``ema`` (the averaged parameters as a list, without
names), ``optimizer`` and ``step``. Its configuration is a Python file of that project; give it as nested names.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.layers import ResidualBlock, SelfAttention
from models.ncsnpp import NCSNpp
from models.ncsnpp_layers import FourierEmbedding
from models.pretrained.files import PretrainedError, Source, fill, one, read_torch
from models.score_model import ScoreModel
from sde_lib import SDE, VESDE, VPSDE, SubVPSDE

PYRAMIDS = {"none": "none", "output_skip": "skip", "input_skip": "skip", "residual": "residual"}
RES_BLOCK = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "modulate",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
}


def load(path: Path, config: Mapping[str, Any] | None) -> ScoreModel:
    """The averaged network of a checkpoint as a score model, in evaluation mode.

    Raises:
        PretrainedError: no or another configuration, or a file that does not fit it.
    """
    if config is None:
        raise PretrainedError(f"{path} does not hold its configuration; give config=, nested as in score_sde_pytorch")
    try:
        net, sde = build_network(config), build_process(config)
        meaning, conditioning = read_meaning(config)
    except KeyError as error:
        raise PretrainedError(f"the configuration lacks {error}; give model, data, training as published") from error
    except (TypeError, AttributeError) as error:
        raise PretrainedError(f"the configuration has a value of a wrong kind ({error})") from error
    content = read_torch(path)
    if not isinstance(content, Mapping) or not {"model", "ema"} <= set(content):
        raise PretrainedError(f"{path} is no checkpoint of score_sde_pytorch: it needs the entries model and ema")
    fill(net, sources(net), averaged(content, path), path)
    if meaning == "minus eps":
        meaning = "eps"
        for name, part in units(net):
            if name == "head" or (net.progressive == "skip" and name.endswith("_image")):
                for parameter in part.parameters():
                    parameter.data.neg_()
    return ScoreModel(net, sde, meaning, conditioning).eval()


def read_meaning(config: Mapping[str, Any]) -> tuple[str, str]:
    """What the output means and what the network is told: the score is -F / sigma on VP and sub-VP, and F on VE.

    A VE network with positional embedding whose output is divided by sigma from a table predicts minus the noise.
    """
    if config["training"]["sde"].lower() != "vesde":
        return "eps", "time"
    positional = config["model"].get("embedding_type", "positional") == "positional"
    if config["training"]["continuous"] == positional:
        raise PretrainedError("a VE network is continuous with Fourier embedding, or discrete with positional one")
    if positional:
        return "minus eps" if config["model"]["scale_by_sigma"] else "score", "time_left"
    return "score", "log_sigma"


def build_network(config: Mapping[str, Any]) -> NCSNpp:
    """The network of a configuration in the project's own names."""
    model, data = config["model"], config["data"]
    settings = {
        "channels": model["nf"],
        "channel_mult": model["ch_mult"],
        "res_blocks": model["num_res_blocks"],
        "attention_resolutions": model["attn_resolutions"],
        "dropout": model["dropout"],
        "centered": data["centered"],
    }
    if model["name"] == "ddpm":
        settings |= {"block": "ddpm", "fir": None, "skip_rescale": False, "groups": 32}
    elif model["name"] == "ncsnpp":
        fourier = model["embedding_type"] == "fourier"
        settings |= {
            "block": model["resblock_type"],
            "fir": model["fir_kernel"] if model["fir"] else None,
            "skip_rescale": model["skip_rescale"],
            "progressive": PYRAMIDS[model["progressive"]],
            "progressive_input": PYRAMIDS[model["progressive_input"]],
            "combine": model["progressive_combine"],
            "embedding": model["embedding_type"],
            "fourier_scale": model["fourier_scale"],
            "scale_by_sigma": model["scale_by_sigma"] and fourier,
        }
    else:
        raise PretrainedError(f"networks of the kind {model['name']!r} are not known; only 'ddpm' and 'ncsnpp' are")
    return NCSNpp(data["num_channels"], data["image_size"], **settings)


def build_process(config: Mapping[str, Any]) -> SDE:
    """The process that the network was trained on."""
    model, name = config["model"], config["training"]["sde"].lower()
    if name in ("vpsde", "subvpsde"):
        return (VPSDE if name == "vpsde" else SubVPSDE)(model["beta_min"], model["beta_max"])
    if name == "vesde":
        return VESDE(model["sigma_min"], model["sigma_max"])
    raise PretrainedError(f"the process {name!r} is not known; only vpsde, subvpsde and vesde are")


def averaged(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The averaged parameters by name: the list follows the names of the model, without what is not trained."""
    try:
        named = {name.removeprefix("module."): value for name, value in content["model"].items()}
        shadow = list(content["ema"]["shadow_params"])
    except (AttributeError, KeyError, TypeError) as error:
        raise PretrainedError(f"{path} has no model by name, or no list of averaged parameters ({error})") from error
    named.pop("sigmas", None)
    fixed = {name: value for name, value in named.items() if name.endswith(".W") and value.ndim == 1}
    trained = [name for name in named if name not in fixed]
    if len(trained) != len(shadow):
        raise PretrainedError(f"{path} has {len(shadow)} averaged parameters for {len(trained)} of its model")
    for name, value in zip(trained, shadow, strict=True):
        if value.shape != named[name].shape:
            raise PretrainedError(
                f"{path}: the average of {name} has shape {tuple(value.shape)}, not {tuple(named[name].shape)}"
            )
    return fixed | dict(zip(trained, shadow, strict=True))


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


def sources(net: NCSNpp) -> dict[str, Source]:
    """Name in our network -> its source in the file."""
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
