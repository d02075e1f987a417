"""diffusers' ``UNet2DModel`` folders, as Google published DDPM's networks (ddpm-cifar10-32, ddpm-celebahq-256).

A folder holds ``config.json`` and the weights, and beside it or in ``scheduler/`` the chain. Both layouts are read:
files at the root, and ``unet/`` with ``scheduler/``.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.layers import Downsample, SelfAttention, Upsample
from models.pretrained.chain import ChainIndex
from models.pretrained.files import PretrainedError, Source, fill, one, read_torch
from models.score_model import ScoreModel
from models.unet import Stage, UNet
from sde_lib import SDE, VPSDE

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
MUST_BE: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_type": ("conv",),
    "flip_sin_to_cos": (False,),
    "freq_shift": (1,),
    "mid_block_scale_factor": (1,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}
"""Option of ``UNet2DModel`` -> the values with which it is our U-Net."""
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
PARTS = {"norm1": "norm1", "conv1": "conv1", "modulate": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}


def load(path: Path, config: Mapping[str, Any] | None) -> ScoreModel:
    """The network of a folder as a score model, in evaluation mode.

    Raises:
        PretrainedError: files are missing or damaged, or the network is of a kind that our U-Net is not.
    """
    if config is not None:
        raise PretrainedError(f"{path} holds its own configuration; leave config out")
    folder = path / "unet" if (path / "unet").is_dir() else path
    settings = _json(folder / "config.json")
    try:
        net = build_network(settings)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise PretrainedError(f"{folder / 'config.json'} is not the configuration of a network: {reason}") from error
    sde, chain, prediction = read_chain(path)
    tensors = {_modern(name): value for name, value in _weights(folder).items()}
    fill(net, sources(net), tensors, folder)
    return ScoreModel(net, sde, prediction, chain).eval()


def build_network(settings: Mapping[str, Any]) -> UNet:
    """Our U-Net with the settings of a ``UNet2DModel``."""
    for option, accepted in MUST_BE.items():
        if settings.get(option, accepted[0]) not in accepted:
            raise ValueError(f"{option} is {settings[option]!r}; only {accepted[0]!r} can be read")
    widths, size = settings["block_out_channels"], settings["sample_size"]
    attended = [kind.startswith("Attn") for kind in settings["down_block_types"]]
    for side, expected in (("down", attended), ("up", attended[::-1])):
        wanted = [f"{'Attn' if yes else ''}{side.capitalize()}Block2D" for yes in expected]
        if list(settings[f"{side}_block_types"]) != wanted:
            raise ValueError(f"{side}_block_types are {settings[f'{side}_block_types']}; only {wanted} can be read")
    if settings.get("attention_head_dim") is not None and any(attended):
        raise ValueError(f"attention_head_dim is {settings['attention_head_dim']}; only one head (null) can be read")
    if settings["in_channels"] != settings["out_channels"] or any(width % widths[0] for width in widths):
        raise ValueError("in_channels and out_channels must be equal, and all widths multiples of the first")
    groups, eps = settings.get("norm_num_groups", 32), settings.get("norm_eps", 1e-5)
    return UNet(
        settings["in_channels"],
        size,
        channels=widths[0],
        channel_mult=[width // widths[0] for width in widths],
        res_blocks=settings["layers_per_block"],
        attention_resolutions=[size // 2**level for level, yes in enumerate(attended) if yes],
        dropout=settings.get("dropout", 0.0),
        norm=partial(nn.GroupNorm, groups, eps=eps),
        downsample_padding=settings.get("downsample_padding", 1),
    )


def read_chain(path: Path) -> tuple[SDE, ChainIndex, str]:
    """The process, the chain that the network was trained on, and what it predicts."""
    places = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        raise PretrainedError(f"no scheduler_config.json in {path} or {path / 'scheduler'}: the chain is not known")
    chain = _json(place)
    try:
        steps, first, last = chain["num_train_timesteps"], chain["beta_start"], chain["beta_end"]
        kind, prediction = chain.get("beta_schedule", "linear"), chain.get("prediction_type", "epsilon")
        if kind != "linear" or prediction not in PREDICTIONS:
            raise PretrainedError(
                f"{place}: beta_schedule {kind!r} with prediction_type {prediction!r} cannot be read; only 'linear' "
                f"with {', '.join(PREDICTIONS)} can"
            )
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
        return VPSDE(first * steps, last * steps), ChainIndex((1 - betas).cumprod(0)), PREDICTIONS[prediction]
    except (KeyError, TypeError) as error:
        raise PretrainedError(f"{place} is not the configuration of a chain ({error})") from error


def sources(net: UNet) -> dict[str, Source]:
    """Name in our network -> its source in the file."""
    found = _copied(
        {
            "embed.mlp.0": "time_embedding.linear_1",
            "embed.mlp.2": "time_embedding.linear_2",
            "stem": "conv_in",
            "norm": "conv_norm_out",
            "head": "conv_out",
        }
    )
    for name, part, theirs in _parts(net):
        if isinstance(part, Stage):
            block, number = theirs
            found |= _copied({f"{name}.block.{own}": f"{block}.resnets.{number}.{t}" for own, t in PARTS.items()})
            if isinstance(part.block.shortcut, nn.Conv2d):
                found |= _copied({f"{name}.block.shortcut": f"{block}.resnets.{number}.conv_shortcut"})
            if isinstance(part.attention, SelfAttention):
                found |= _attention(f"{name}.attention", f"{block}.attentions.{number}")
        else:
            kind = "downsamplers" if isinstance(part, Downsample) else "upsamplers"
            found |= _copied({f"{name}.conv": f"{theirs[0]}.{kind}.0.conv"})
    return found


def _parts(net: UNet) -> Iterator[tuple[str, nn.Module, tuple[str, int]]]:
    """(our name, the part, (their block, number in it)) in the order of the network."""
    for number, part in enumerate(net.middle):
        yield f"middle.{number}", part, ("mid_block", number)
    for room, block in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
        level = number = 0
        for name, part in getattr(net, room).items():
            yield f"{room}.{name}", part, (f"{block}.{level}", number)
            number += 1
            if isinstance(part, Downsample | Upsample):
                level, number = level + 1, 0


def _attention(name: str, theirs: str) -> dict[str, Source]:
    qkv = [f"{theirs}.to_{letter}" for letter in "qkv"]
    found = _copied({f"{name}.norm": f"{theirs}.group_norm"})
    found[f"{name}.qkv.weight"] = Source(tuple(f"{part}.weight" for part in qkv), _pointwise)
    found[f"{name}.qkv.bias"] = Source(tuple(f"{part}.bias" for part in qkv), lambda *parts: torch.cat(parts))
    found[f"{name}.proj.weight"] = Source((f"{theirs}.to_out.0.weight",), _pointwise)
    found[f"{name}.proj.bias"] = one(f"{theirs}.to_out.0.bias")
    return found


def _copied(names: Mapping[str, str]) -> dict[str, Source]:
    return {f"{own}.{kind}": one(f"{theirs}.{kind}") for own, theirs in names.items() for kind in ("weight", "bias")}


def _pointwise(*matrices: Tensor) -> Tensor:
    """(out, in) matrices, one below the other, as a 1x1 convolution."""
    return torch.cat(matrices)[..., None, None]


def _modern(name: str) -> str:
    """A tensor's name as written today; attention had others."""
    parts = name.split(".")
    return ".".join(OLD_NAMES.get(part, part) for part in parts) if "attentions" in parts else name


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise PretrainedError(f"no file {path}")
    try:
        content = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise PretrainedError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise PretrainedError(f"{path} holds no settings")
    return content


def _weights(folder: Path) -> dict[str, Tensor]:
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise PretrainedError(f"no weights in {folder}: neither {' nor '.join(WEIGHTS)}")
    if path.suffix == ".bin":
        return dict(read_torch(path))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise PretrainedError(f"{path} is damaged or cut short ({error})") from error
