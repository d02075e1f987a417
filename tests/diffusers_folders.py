"""Networks of diffusers with random weights, and the folders in which they are published."""

import torch
from diffusers import DDPMScheduler, UNet2DModel

GOOGLE = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "time_embedding_type": "positional",
}
CIFAR = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SMALL = {"sample_size": 16, "block_out_channels": [32, 64], "layers_per_block": 1}
PLAIN = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
ATTENTION = {
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
VARIANTS = {
    "attention": SMALL | ATTENTION,
    "none": SMALL | PLAIN,
    "other padding": SMALL | ATTENTION | {"downsample_padding": 1},
    "other norm": SMALL | ATTENTION | {"norm_num_groups": 8, "norm_eps": 1e-5},
    "three levels": SMALL | CIFAR | {"sample_size": 16, "block_out_channels": [32, 64, 64, 64]},
    "heads": SMALL | ATTENTION | {"attention_head_dim": 8},
    "the defaults of diffusers": SMALL
    | ATTENTION
    | {"attention_head_dim": 8, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "norm_eps": 1e-5},
    "a learned row for each step": SMALL | PLAIN | {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "widths that are no multiples": SMALL | PLAIN | {"block_out_channels": [64, 96]},
    "one channel": SMALL | PLAIN | {"in_channels": 1, "out_channels": 1, "layers_per_block": 2},
}


def theirs(**settings):
    """A network of diffusers, with weights that leave nothing silent."""
    torch.manual_seed(0)
    return UNet2DModel(**GOOGLE | settings).eval()


def save(folder, unet, *, root=True, old_names=False, binary=False, scheduler=None):
    """A folder as published (files at the root) or as ``DDPMPipeline.save_pretrained`` writes it."""
    place = folder if root else folder / "unet"
    unet.save_pretrained(place, safe_serialization=not binary)
    (scheduler or DDPMScheduler()).save_pretrained(folder if root else folder / "scheduler")
    if old_names:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        tensors = unet.state_dict()
        for new, old in names.items():
            tensors = {k.replace(new, old) if "attentions" in k else k: v for k, v in tensors.items()}
        torch.save(tensors, place / "diffusion_pytorch_model.bin")
    return folder
