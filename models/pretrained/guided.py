"""Checkpoints of guided-diffusion and improved-diffusion: ``.pt`` files that hold a state dict and nothing else.

Their configuration is the command line with which they were trained; give it by the names of its flags.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.description import Description
from models.pretrained.files import (
    Pretrained,
    PretrainedError,
    Source,
    arrange,
    describing,
    one,
    read_torch,
    skeleton,
    with_null_label,
)
from models.pretrained.kinds import COUNT, FLAG, SHARE, TEXT, check, either

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
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
"""Image size -> widths where the flag channel_mult is empty."""
KINDS = {
    "image_size": COUNT,
    "num_channels": COUNT,
    "num_res_blocks": COUNT,
    "num_heads": COUNT,
    "num_heads_upsample": either(COUNT, -1),
    "num_head_channels": either(COUNT, -1),
    "attention_resolutions": TEXT,
    "channel_mult": TEXT,
    "dropout": SHARE,
    "class_cond": FLAG,
    "use_scale_shift_norm": FLAG,
    "resblock_updown": FLAG,
    "use_new_attention_order": FLAG,
    "learn_sigma": FLAG,
    "diffusion_steps": COUNT,
    "noise_schedule": TEXT,
    "rescale_timesteps": FLAG,
    "predict_xstart": FLAG,
}
"""Flag -> what it takes."""
CLASSES = 1000
PROCESSES = {"linear": "vp", "cosine": "cosine"}
"""Their noise schedule -> the process that it becomes in continuous time."""


def read(path: Path, config: Mapping[str, Any] | None) -> Pretrained:
    """The network of a file; the half of its outputs that tells the variance is kept, and not used.

    Raises:
        PretrainedError: no or another configuration, or a file that does not fit it.
    """
    if config is None:
        raise PretrainedError(
            f"{path} does not hold its configuration; give config= (--source_config): a published name, or the flags"
        )
    with describing("the configuration"):
        description = describe(config)
        net = skeleton(description)
    tensors = read_torch(path)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise PretrainedError(f"{path} is no checkpoint of guided-diffusion: it holds other things than tensors")
    new_order = bool(config.get("use_new_attention_order", False))
    return Pretrained(description, arrange(net, sources(net, new_order), tensors, path))


def describe(config: Mapping[str, Any]) -> Description:
    """The score model of these flags."""
    check(config, KINDS)
    steps, schedule = config.get("diffusion_steps", 1000), config.get("noise_schedule", "linear")
    if schedule not in PROCESSES:
        raise ValueError(f"noise_schedule is {schedule!r}; only {' and '.join(map(repr, PROCESSES))} can be read")
    if steps != 1000 and "rescale_timesteps" not in config:
        raise ValueError(
            f"rescale_timesteps is not given, and matters with {steps} steps; its default is True in "
            "improved-diffusion and False in guided-diffusion"
        )
    return Description(
        "adm",
        network_options(config),
        PROCESSES[schedule],
        prediction="x0" if config.get("predict_xstart", False) else "eps",
        conditioning="chain",
        chain={
            "chain": schedule,
            "steps": steps,
            "scale": 1000 / steps if config.get("rescale_timesteps", False) else 1.0,
        },
    )


def network_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``ADM``."""
    size, mult = config["image_size"], config.get("channel_mult", "")
    head_channels = config.get("num_head_channels", -1)
    if config.get("num_heads_upsample", -1) not in (-1, config["num_heads"]):
        raise ValueError("another num_heads_upsample than num_heads cannot be read")
    if not mult and size not in MULTS:
        raise ValueError(f"there is no default of channel_mult for image_size {size}")
    return {
        "in_channels": 3,
        "image_size": size,
        "channels": config["num_channels"],
        "channel_mult": tuple(int(m) for m in mult.split(",")) if mult else MULTS[size],
        "res_blocks": config["num_res_blocks"],
        "attention_resolutions": tuple(int(r) for r in config["attention_resolutions"].split(",") if r),
        "heads": config["num_heads"],
        "head_channels": None if head_channels == -1 else head_channels,
        "dropout": config.get("dropout", 0.0),
        "num_classes": CLASSES if config.get("class_cond", False) else 0,
        "scale_shift": config["use_scale_shift_norm"],
        "resample_in_blocks": config.get("resblock_updown", False),
        "learned_variance": config["learn_sigma"],
    }


def sources(net: nn.Module, new_order: bool) -> dict[str, Source]:
    """Name in our network -> its source in the file."""
    heads = {name: part.heads for name, part in net.named_modules() if hasattr(part, "heads")}
    found = {}
    for name in net.state_dict():
        theirs, owner = name, name.rsplit(".", 2)[0]
        for own, other in NAMES:
            theirs = re.sub(own, other, theirs)
        found[name] = one(theirs)
        if name.startswith("embed.label."):
            found[name] = with_null_label(theirs)
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
