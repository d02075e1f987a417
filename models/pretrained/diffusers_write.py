"""A trained U-Net in the layout of diffusers, which ``DDPMPipeline.from_pretrained`` loads.

diffusers knows chains x_i = sqrt(a_i) x_0 + sqrt(1 - a_i) eps, and networks that see x_i and the number i, and predict
eps, x_0 or v. A model of ours is such a network if c_in(t) x_t = x_i at the time t that has the log-SNR of step i, and
if eps_hat = k x_t + c F is one of these three predictions there, up to the sign of F. What is left is what it is told:
where that is not the number i, the embedding is written as a learned row for each step.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.description import Description
from models.layers import SelfAttention, StepEmbedding
from models.pretrained.diffusers import CHAINS, EMBEDDINGS, WEIGHTS, sources
from models.score_model import ScoreModel
from models.unet import UNet
from sde_lib import PREDICTIONS, chain_alphas_cumprod

VERSION = "0.35.0"
"""Of diffusers; the folder needs no later one."""
NAMES = {ours: theirs for theirs, ours in CHAINS.items()}


def write(folder: Path, description: Description, model: ScoreModel) -> None:
    """Write ``model_index.json``, ``unet/`` and ``scheduler/``.

    Args:
        folder: where to; made if need be.
        description: of the model.
        model: with the weights.

    Raises:
        ValueError: diffusers has no such network, process or prediction; the message says what would have to change.
    """
    net = model.net
    if not isinstance(net, UNet):
        raise ValueError(f"diffusers' pipeline has no network like {description.network!r}; only 'unet' fits it")
    if description.options.get("num_attributes"):
        raise ValueError("diffusers' pipeline has no network that is told attributes; only classes fit it")
    if (description.low, description.high) != (-1.0, 1.0):
        raise ValueError(f"the data lie on [{description.low:g}, {description.high:g}]; diffusers' lie on [-1, 1]")
    told_steps = description.conditioning == "chain" and description.chain.get("scale", 1.0) == 1
    chain = own_chain(description.chain) if told_steps else own_chain({})
    prediction, sign, times = read_as_chain(model, chain)
    settings = unet_settings(net, description)
    tensors = their_tensors(net)
    if sign < 0:
        tensors |= {name: -tensors[name] for name in ("conv_out.weight", "conv_out.bias")}
    if not told_steps or isinstance(net.embed.waves, StepEmbedding):
        settings |= {"time_embedding_type": "learned", "num_train_timesteps": chain["steps"]}
        with torch.no_grad():
            c_noise = model.c_noise(model.sde, times).float().to(next(net.parameters()).device)
            tensors["time_proj.weight"] = net.embed.waves(c_noise)
    unet, scheduler = folder / "unet", folder / "scheduler"
    for place in (unet, scheduler):
        place.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, unet / WEIGHTS[0])
    _save(unet / "config.json", "UNet2DModel", settings)
    _save(
        scheduler / "scheduler_config.json",
        "DDPMScheduler",
        {
            "num_train_timesteps": chain["steps"],
            "beta_schedule": NAMES[chain["chain"]],
            "beta_start": chain["first"],
            "beta_end": chain["last"],
            "prediction_type": prediction,
            "variance_type": "fixed_small",
            "clip_sample": True,
            "clip_sample_range": 1.0,
        },
    )
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    _save(folder / "model_index.json", "DDPMPipeline", parts)


def own_chain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``ChainIndex`` with their defaults, which make DDPM's chain."""
    steps, first, last = options.get("steps", 1000), options.get("first"), options.get("last")
    return {
        "chain": options.get("chain", "linear"),
        "steps": steps,
        "first": 0.1 / steps if first is None else first,
        "last": 20 / steps if last is None else last,
    }


def read_as_chain(model: ScoreModel, chain: Mapping[str, Any]) -> tuple[str, int, Tensor]:
    """(their prediction, the sign of F in it, the time of each step), float64 (steps,).

    Raises:
        ValueError: the network does not see a chain, or predicts something else.
    """
    kept = chain_alphas_cumprod(chain["chain"], chain["steps"], chain["first"], chain["last"])
    times = model.sde.time_from_log_snr(kept.log() - torch.log1p(-kept))
    within = (times >= 0) & (times <= model.sde.T)  # the last steps of a chain may forget more than the process
    alpha, sigma = model.sde.marginal(times[within])
    c_in, k, c = PREDICTIONS[model.prediction](alpha, sigma, model.sigma_data)
    a, s = kept[within].sqrt(), (1 - kept[within]).sqrt()
    if not (_close(c_in * alpha, a) and _close(c_in * sigma, s)):
        raise ValueError(
            f"with {model.sde!r} and the prediction {model.prediction!r} the network does not see a chain that keeps "
            "its variance, as all of diffusers' do: train on vp or cosine, or with model.prediction=edm and "
            "model.sigma_data=1 on any process"
        )
    rows = {"epsilon": (0 * s, a / a), "sample": (1 / s, -a / s), "v_prediction": (s, a)}
    for name, (x_part, f_part) in rows.items():
        for sign in (1, -1):
            if _close(k / c_in, x_part) and _close(c, sign * f_part):
                return name, sign, times.clamp(0, model.sde.T)
    raise ValueError(f"diffusers has no prediction like {model.prediction!r}; train with eps, x0, v or edm")


def unet_settings(net: UNet, description: Description) -> dict[str, Any]:
    """The configuration of the same ``UNet2DModel``.

    Raises:
        ValueError: it cannot have heads or sizes like these.
    """
    options = description.options
    heads = {part.qkv.in_channels // part.heads for part in net.modules() if isinstance(part, SelfAttention)}
    single = all(part.heads == 1 for part in net.modules() if isinstance(part, SelfAttention))
    if len(heads) > 1 and not single:
        raise ValueError("the attention heads have several widths; diffusers' have one: set model.head_channels")
    size, mult, base = options["image_size"], options["channel_mult"], options["channels"]
    if mult[0] != 1:
        raise ValueError(f"channel_mult begins with {mult[0]}, not 1; diffusers' first level is as wide as the stem")
    if size % 2 ** (len(mult) - 1):
        raise ValueError(f"an image of size {size} cannot be halved {len(mult) - 1} times exactly, as diffusers does")
    attended = [size // 2**level in options["attention_resolutions"] for level in range(len(mult))]
    embedding = options.get("embedding", "positional")
    flip, shift = {ours: theirs for theirs, ours in EMBEDDINGS.items()}.get(embedding, (False, 1))
    classes = options.get("num_classes", 0)
    return {
        "sample_size": size,
        "in_channels": options["in_channels"],
        "out_channels": options["in_channels"],
        "block_out_channels": [round(base * m) for m in mult],
        "layers_per_block": options["res_blocks"],
        "down_block_types": [f"{'Attn' if yes else ''}DownBlock2D" for yes in attended],
        "up_block_types": [f"{'Attn' if yes else ''}UpBlock2D" for yes in attended[::-1]],
        "attention_head_dim": None if single else heads.pop(),
        "downsample_padding": options.get("downsample_padding", 1),
        "dropout": options.get("dropout", 0.0),
        "norm_num_groups": net.norm.num_groups,
        "norm_eps": net.norm.eps,
        "flip_sin_to_cos": flip,
        "freq_shift": shift,
        "time_embedding_type": "positional",
        "num_class_embeds": classes + 1 if classes else None,
        "act_fn": "silu",
        "add_attention": True,
        "center_input_sample": False,
        "mid_block_scale_factor": 1,
        "resnet_time_scale_shift": "default",
    }


def their_tensors(net: UNet) -> dict[str, Tensor]:
    """The weights by diffusers' names; a null label is the last of the classes."""
    own, found = net.state_dict(), {}
    for name, source in sources(net).items():
        for theirs, part in zip(source.names, own[name].chunk(len(source.names)), strict=True):
            linear = ".attentions." in theirs and part.ndim == 4  # here a 1x1 convolution
            found[theirs] = part.flatten(1) if linear else part
    return found


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def _save(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    header = {"_class_name": kind, "_diffusers_version": VERSION}
    path.write_text(json.dumps(header | dict(content), indent=2) + "\n")
