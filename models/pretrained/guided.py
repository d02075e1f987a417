"""Checkpoints of guided-diffusion and improved-diffusion: ``.pt`` files that hold a state dict and nothing else.

Their configuration is the command line with which they were trained; give it by the names of its flags.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.adm import ADM
from models.pretrained.chain import ChainIndex
from models.pretrained.files import PretrainedError, Source, fill, one, read_torch
from models.score_model import ScoreModel
from sde_lib import VPSDE

NAMES = (
    (r"^embed\.mlp\.", "time_embed."),
    (r"^embed\.label\.", "label_emb."),
    (r"^encoder\.", "input_blocks."),
    (r"^middle\.", "middle_block."),
    (r"^decoder\.", "output_blocks."),
    (r"^norm\.", "out.0."),
    (r"^head\.", "out.2."),
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.modulate\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.shortcut\.", ".skip_connection."),
    (r"\.proj\.", ".proj_out."),
    (r"^(input_blocks\.\d+\.0)\.conv\.", r"\1.op."),
)
"""Ours -> theirs, applied in this order."""
MULTS = {
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
"""Image size -> widths where the flag channel_mult is empty."""
CLASSES = 1000


def load(path: Path, config: Mapping[str, Any] | None) -> ScoreModel:
    """The network of a file as a score model, in evaluation mode; its learned variance is left aside.

    Raises:
        PretrainedError: no or another configuration, or a file that does not fit it.
    """
    if config is None:
        raise PretrainedError(f"{path} does not hold its configuration; give config=, by the names of the flags")
    try:
        net = build_network(config)
        betas = build_chain(config.get("noise_schedule", "linear"), config.get("diffusion_steps", 1000))
    except KeyError as error:
        raise PretrainedError(f"the configuration lacks {error}; give the flags of the training") from error
    except (TypeError, ValueError) as error:
        raise PretrainedError(f"the configuration is not that of a network: {error}") from error
    tensors = read_torch(path)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise PretrainedError(f"{path} is no checkpoint of guided-diffusion: it holds other things than tensors")
    fill(net, sources(net, bool(config.get("use_new_attention_order", False))), tensors, path)
    scale = 1000 / len(betas) if config.get("rescale_timesteps", False) else 1.0
    return ScoreModel(net, VPSDE(), "eps", ChainIndex((1 - betas).cumprod(0), scale)).eval()


def build_network(config: Mapping[str, Any]) -> ADM:
    """The network of these flags."""
    size, mult = config["image_size"], config.get("channel_mult", "")
    head_channels = config.get("num_head_channels", -1)
    if config.get("predict_xstart", False) or config.get("num_heads_upsample", -1) not in (-1, config["num_heads"]):
        raise ValueError("predict_xstart and another num_heads_upsample cannot be read")
    if not mult and size not in MULTS:
        raise ValueError(f"there is no default of channel_mult for image_size {size}")
    return ADM(
        3,
        size,
        channels=config["num_channels"],
        channel_mult=[int(m) for m in mult.split(",")] if mult else MULTS[size],
        res_blocks=config["num_res_blocks"],
        attention_resolutions=[int(r) for r in config["attention_resolutions"].split(",") if r],
        heads=config["num_heads"],
        head_channels=None if head_channels == -1 else head_channels,
        dropout=config.get("dropout", 0.0),
        num_classes=CLASSES if config.get("class_cond", False) else 0,
        scale_shift=config["use_scale_shift_norm"],
        resample_in_blocks=config.get("resblock_updown", False),
        learned_variance=config["learn_sigma"],
    )


def build_chain(schedule: str, steps: int) -> Tensor:
    """The betas: DDPM's line scaled to the number of steps, or the cosine of arXiv 2102.09672."""
    if schedule == "linear":
        return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    if schedule == "cosine":
        edges = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((edges + 0.008) / 1.008 * torch.pi / 2).square()
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    raise ValueError(f"noise_schedule is {schedule!r}; only 'linear' and 'cosine' can be read")


def sources(net: ADM, new_order: bool) -> dict[str, Source]:
    """Name in our network -> its source in the file."""
    heads = {name: part.heads for name, part in net.named_modules() if hasattr(part, "heads")}
    found = {}
    for name in net.state_dict():
        theirs, owner = name, name.rsplit(".", 2)[0]
        for own, other in NAMES:
            theirs = re.sub(own, other, theirs)
        found[name] = one(theirs)
        if name.startswith("embed.label."):
            found[name] = Source((theirs,), lambda value: torch.cat([value, value.new_zeros(1, value.shape[1])]))
        elif owner in heads and ".norm." not in name:
            by_head = heads[owner] if ".qkv." in name and not new_order else 1
            found[name] = Source((theirs,), _reordered(by_head, name.endswith("weight")))
    return found


def _reordered(heads: int, matrix: bool) -> Callable[[Tensor], Tensor]:
    """Rows (heads, 3, C / heads) -> (3, heads, C / heads), and a convolution of a line into one of an image."""

    def make(value: Tensor) -> Tensor:
        value = value[..., None] if matrix else value
        return value if heads == 1 else value.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    return make
