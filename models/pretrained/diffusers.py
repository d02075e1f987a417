"""diffusers' ``UNet2DModel`` folders, as Google published DDPM's networks (ddpm-cifar10-32, ddpm-celebahq-256).

A folder holds ``config.json`` and the weights, and beside it or in ``scheduler/`` the chain. Both layouts are read:
files at the root, and ``unet/`` with ``scheduler/``.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.description import Description
from models.layers import Downsample, SelfAttention, StepEmbedding, Upsample
from models.pretrained.files import (
    Pretrained,
    PretrainedError,
    Source,
    arrange,
    describing,
    one,
    read_json,
    read_safetensors,
    read_torch,
    skeleton,
    with_null_label,
)
from models.pretrained.kinds import COUNT, COUNTS, POSITIVE, SHARE, Kind, check, either
from models.unet import Stage, UNet
from sde_lib import chain_alphas_cumprod

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
MUST_BE: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "attn_norm_num_groups": (None,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_type": ("conv",),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_dim": (None,),
    "upsample_type": ("conv",),
}
"""Option of ``UNet2DModel`` -> the values with which it is our U-Net."""
DEFAULTS = {
    "attention_head_dim": 8,
    "downsample_padding": 1,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "time_embedding_type": "positional",
}
"""What ``UNet2DModel`` takes for options that a configuration leaves out."""
KINDS = {
    "sample_size": COUNT,
    "in_channels": COUNT,
    "out_channels": COUNT,
    "layers_per_block": COUNT,
    "block_out_channels": COUNTS,
    "attention_head_dim": either(COUNT, None),
    "downsample_padding": Kind("0 or 1", lambda value: type(value) is int and value in (0, 1)),
    "dropout": SHARE,
    "norm_eps": POSITIVE,
    "norm_num_groups": COUNT,
    "num_class_embeds": either(COUNT, None),
    "num_train_timesteps": either(COUNT, None),
}
CHAIN_KINDS = {"num_train_timesteps": COUNT, "beta_start": POSITIVE, "beta_end": POSITIVE}
"""Option -> what it takes, of networks and of chains."""
SHAPE = (
    "sample_size",
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
)
"""The rest of its options."""
OPTIONS = (("beta_schedule", "linear"), ("prediction_type", "epsilon"))
DDPM: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
"""The chain that is taken where a folder tells none."""
EMBEDDINGS = {(False, 1): "positional", (True, 0): "cosines_first"}
"""(flip_sin_to_cos, freq_shift) -> our embedding."""
CHAINS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
"""Their beta_schedule -> ours."""
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
PARTS = {"norm1": "norm1", "conv1": "conv1", "modulate": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}


def read(path: Path, config: Mapping[str, Any] | None) -> Pretrained:
    """The network of a folder.

    Raises:
        PretrainedError: files are missing or damaged, or the network is of a kind that our U-Net is not.
    """
    if config is not None:
        raise PretrainedError(f"{path} holds its own configuration; leave config out")
    folder = path / "unet" if (path / "unet").is_dir() else path
    settings = read_json(folder / "config.json")
    with describing(folder / "config.json"):
        description = Description("unet", network_options(settings), **read_chain(path))
        net = cast(UNet, skeleton(description))
    tensors = {_modern(name): value for name, value in _weights(folder).items()}
    return Pretrained(description, arrange(net, sources(net), tensors, folder))


def network_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Our U-Net's, with the settings of a ``UNet2DModel``."""
    unknown = [o for o in settings if o not in {*MUST_BE, *DEFAULTS, *SHAPE} and not o.startswith("_")]
    if unknown:
        raise ValueError(f"{unknown[0]} is not known, and may change what the network computes")
    settings = DEFAULTS | dict(settings)
    check(settings, KINDS)
    for option, accepted in MUST_BE.items():
        if settings.get(option, accepted[0]) not in accepted:
            raise ValueError(f"{option} is {settings[option]!r}; only {accepted[0]!r} can be read")
    widths, size = settings["block_out_channels"], settings["sample_size"]
    attended = [kind.startswith("Attn") for kind in settings["down_block_types"]]
    for side, expected in (("down", attended), ("up", attended[::-1])):
        wanted = [f"{'Attn' if yes else ''}{side.capitalize()}Block2D" for yes in expected]
        if list(settings[f"{side}_block_types"]) != wanted:
            raise ValueError(f"{side}_block_types are {settings[f'{side}_block_types']}; only {wanted} can be read")
    if settings["in_channels"] != settings["out_channels"]:
        raise ValueError("in_channels and out_channels must be equal")
    return {
        "in_channels": settings["in_channels"],
        "image_size": size,
        "channels": widths[0],
        "channel_mult": tuple(width / widths[0] if width % widths[0] else width // widths[0] for width in widths),
        "res_blocks": settings["layers_per_block"],
        "attention_resolutions": tuple(size // 2**level for level, yes in enumerate(attended) if yes),
        "head_channels": settings["attention_head_dim"],
        "dropout": settings["dropout"],
        "num_classes": settings["num_class_embeds"] or 0,
        **_embedding(settings),
        "groups": settings["norm_num_groups"],
        "norm_eps": settings["norm_eps"],
        "downsample_padding": settings["downsample_padding"],
    }


def _embedding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Which embedding of the step the network has."""
    kind = settings["time_embedding_type"]
    if kind == "learned":
        return {"embedding": "steps", "embedding_steps": settings["num_train_timesteps"]}
    waves = (settings["flip_sin_to_cos"], settings["freq_shift"])
    if kind != "positional" or waves not in EMBEDDINGS:
        raise ValueError(
            f"time_embedding_type {kind!r} with (flip_sin_to_cos, freq_shift) {waves} cannot be read; 'learned' can, "
            f"and 'positional' with {' or '.join(map(str, EMBEDDINGS))}"
        )
    return {"embedding": EMBEDDINGS[waves]}


def read_chain(path: Path) -> dict[str, Any]:
    """Process, chain and prediction, by the names of ``Description``."""
    places = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        warnings.warn(
            f"no scheduler_config.json in {path} or {path / 'scheduler'}: taking DDPM's chain, and eps as predicted",
            stacklevel=2,
        )
    chain = DDPM if place is None else read_json(place)
    kind, prediction = (str(chain.get(*option)) for option in OPTIONS)
    if kind not in CHAINS or prediction not in PREDICTIONS:
        raise PretrainedError(
            f"{place}: beta_schedule {kind!r} with prediction_type {prediction!r} cannot be read; only "
            f"{', '.join(CHAINS)} with {', '.join(PREDICTIONS)} can"
        )
    for option in ("trained_betas", "rescale_betas_zero_snr"):
        if chain.get(option):
            raise PretrainedError(f"{place}: a chain with {option} cannot be read")
    with describing(place, "a chain"):
        check(chain, CHAIN_KINDS)
        steps, first, last = chain["num_train_timesteps"], chain["beta_start"], chain["beta_end"]
        chain_alphas_cumprod(CHAINS[kind], steps, first, last)
    linear = {"beta_min": first * steps, "beta_max": last * steps}
    return {
        "process": "cosine" if CHAINS[kind] == "cosine" else "vp",
        "process_options": linear if kind == "linear" else {},
        "prediction": PREDICTIONS[prediction],
        "conditioning": "chain",
        "chain": {"chain": CHAINS[kind], "steps": steps, "first": first, "last": last},
    }


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
    if isinstance(net.embed.waves, StepEmbedding):
        found["embed.waves.rows.weight"] = one("time_proj.weight")
    if net.embed.label is not None:
        found["embed.label.weight"] = with_null_label("class_embedding.weight")
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


def _weights(folder: Path) -> dict[str, Tensor]:
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise PretrainedError(f"no weights in {folder}: neither {' nor '.join(WEIGHTS)}")
    return dict(read_torch(path)) if path.suffix == ".bin" else read_safetensors(path)
