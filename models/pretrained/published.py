"""The settings of published checkpoints whose files do not hold them, by the projects' own names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.pretrained.files import PretrainedError, read_json


def _ncsnpp(**changes: Any) -> dict[str, Any]:
    """NCSN++ on VE with data on [0, 1], as trained on CIFAR-10 (arXiv 2011.13456, appendix H), and what differs."""
    return {
        "name": "ncsnpp",
        "nf": 128,
        "ch_mult": (1, 2, 2, 2),
        "num_res_blocks": 4,
        "attn_resolutions": (16,),
        "dropout": 0.1,
        "resblock_type": "biggan",
        "fir": True,
        "fir_kernel": (1, 3, 3, 1),
        "skip_rescale": True,
        "progressive": "none",
        "progressive_input": "residual",
        "progressive_combine": "sum",
        "embedding_type": "fourier",
        "fourier_scale": 16,
        "scale_by_sigma": True,
        "image_size": 32,
        "num_channels": 3,
        "centered": False,
        "sde": "vesde",
        "continuous": True,
        "num_scales": 1000,
        "sigma_min": 0.01,
        "sigma_max": 50.0,
        "beta_min": 0.1,
        "beta_max": 20.0,
    } | changes


DISCRETE = {"continuous": False}
POSITIONAL = {"embedding_type": "positional"}
DEEP = {"num_res_blocks": 8}
SUBVP = {"sde": "subvpsde"}
VP_NCSNPP = {"sde": "vpsde", "centered": True, "scale_by_sigma": False} | POSITIONAL
DDPMPP = VP_NCSNPP | {"fir": False, "progressive_input": "none"}
DDPM = DDPMPP | {"name": "ddpm", "num_res_blocks": 2}
DDPM_256 = DDPM | DISCRETE | {"ch_mult": (1, 1, 2, 2, 4, 4), "dropout": 0.0, "image_size": 256}
PYRAMIDS = {"progressive": "output_skip", "progressive_input": "input_skip", "dropout": 0.0, "num_scales": 2000}
VE_256 = PYRAMIDS | {"ch_mult": (1, 1, 2, 2, 2, 2, 2), "num_res_blocks": 2, "image_size": 256}
VE_1024 = PYRAMIDS | {
    "nf": 16,
    "ch_mult": (1, 2, 4, 8, 16, 32, 32, 32),
    "num_res_blocks": 1,
    "image_size": 1024,
    "sigma_max": 1348.0,
}

SCORE_SDE = {
    "ve/cifar10_ncsnpp_continuous": _ncsnpp(),
    "ve/cifar10_ncsnpp_deep_continuous": _ncsnpp(**DEEP),
    "ve/cifar10_ncsnpp": _ncsnpp(**DISCRETE, **POSITIONAL),
    "ve/cifar10_ddpm": _ncsnpp(**DDPM | DISCRETE | {"sde": "vesde", "centered": False, "scale_by_sigma": True}),
    "ve/celeba_ncsnpp": _ncsnpp(**DISCRETE, **POSITIONAL, image_size=64, sigma_max=90.0),
    "ve/bedroom_ncsnpp_continuous": _ncsnpp(**VE_256, sigma_max=378.0),
    "ve/church_ncsnpp_continuous": _ncsnpp(**VE_256, sigma_max=380.0),
    "ve/celebahq_256_ncsnpp_continuous": _ncsnpp(**VE_256, sigma_max=348.0),
    "ve/ffhq_256_ncsnpp_continuous": _ncsnpp(**VE_256, sigma_max=348.0),
    "ve/celebahq_ncsnpp_continuous": _ncsnpp(**VE_1024),
    "ve/ffhq_1024_ncsnpp_continuous": _ncsnpp(**VE_1024),
    "vp/cifar10_ddpm": _ncsnpp(**DDPM | DISCRETE),
    "vp/cifar10_ddpm_continuous": _ncsnpp(**DDPM),
    "vp/cifar10_ddpmpp": _ncsnpp(**DDPMPP, **DISCRETE),
    "vp/cifar10_ddpmpp_continuous": _ncsnpp(**DDPMPP),
    "vp/cifar10_ddpmpp_deep_continuous": _ncsnpp(**DDPMPP, **DEEP),
    "vp/cifar10_ncsnpp": _ncsnpp(**VP_NCSNPP, **DISCRETE),
    "vp/cifar10_ncsnpp_continuous": _ncsnpp(**VP_NCSNPP),
    "vp/cifar10_ncsnpp_deep_continuous": _ncsnpp(**VP_NCSNPP, **DEEP),
    "subvp/cifar10_ddpm_continuous": _ncsnpp(**DDPM | SUBVP),
    "subvp/cifar10_ddpmpp_continuous": _ncsnpp(**DDPMPP | SUBVP),
    "subvp/cifar10_ddpmpp_deep_continuous": _ncsnpp(**DDPMPP | DEEP | SUBVP),
    "subvp/cifar10_ncsnpp_continuous": _ncsnpp(**VP_NCSNPP | SUBVP),
    "subvp/cifar10_ncsnpp_deep_continuous": _ncsnpp(**VP_NCSNPP | DEEP | SUBVP),
    "vp/ddpm/bedroom": _ncsnpp(**DDPM_256),
    "vp/ddpm/celebahq": _ncsnpp(**DDPM_256),
    "vp/ddpm/church": _ncsnpp(**DDPM_256),
}
"""Folder of a published checkpoint of score_sde_pytorch, or name of its configuration -> the options of both."""


def _guided(size: int, **changes: Any) -> dict[str, Any]:
    """The networks of arXiv 2105.05233 for images of 256 and more, and what differs."""
    return {
        "image_size": size,
        "num_channels": 256,
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_head_channels": 64,
        "attention_resolutions": "32,16,8",
        "dropout": 0.0,
        "class_cond": False,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "use_new_attention_order": False,
        "learn_sigma": True,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "rescale_timesteps": False,
    } | changes


def _improved(size: int, **changes: Any) -> dict[str, Any]:
    """The unconditional networks of arXiv 2102.09672 on 4000 steps of the cosine, and what differs."""
    return _guided(
        size,
        **{
            "num_channels": 128,
            "num_res_blocks": 3,
            "num_head_channels": -1,
            "attention_resolutions": "16,8",
            "resblock_updown": False,
            "diffusion_steps": 4000,
            "noise_schedule": "cosine",
            "rescale_timesteps": True,
        }
        | changes,
    )


LSUN = {
    "num_res_blocks": 2,
    "num_heads": 1,
    "attention_resolutions": "16",
    "use_scale_shift_norm": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_timesteps": False,
}
GUIDED = {
    "64x64_diffusion": _guided(
        64,
        num_channels=192,
        num_res_blocks=3,
        dropout=0.1,
        class_cond=True,
        use_new_attention_order=True,
        noise_schedule="cosine",
    ),
    "128x128_diffusion": _guided(128, num_head_channels=-1, class_cond=True),
    "256x256_diffusion": _guided(256, class_cond=True),
    "256x256_diffusion_uncond": _guided(256),
    "512x512_diffusion": _guided(512, class_cond=True),
    "lsun_bedroom": _guided(256, dropout=0.1),
    "lsun_cat": _guided(256, dropout=0.1),
    "lsun_horse": _guided(256, dropout=0.1),
    "lsun_horse_nodropout": _guided(256),
    "cifar10_uncond_50M_500K": _improved(32, dropout=0.3),
    "cifar10_uncond_vlb_50M_500K": _improved(32, dropout=0.3),
    "imagenet64_uncond_100M_1500K": _improved(64),
    "imagenet64_uncond_vlb_100M_1500K": _improved(64),
    "imagenet64_cond_270M_250K": _improved(64, num_channels=192, class_cond=True, rescale_timesteps=False),
    "lsun_uncond_100M_1200K_bs128": _improved(256, **LSUN),
    "lsun_uncond_100M_2400K_bs64": _improved(256, **LSUN),
}
"""File of guided- or improved-diffusion, without its suffix -> the flags of both."""

PUBLISHED: dict[str, dict[str, Any]] = SCORE_SDE | GUIDED
"""Name -> settings."""


def settings_of(
    path: Path, config: Mapping[str, Any] | str | Path | None, by_itself: bool = False
) -> Mapping[str, Any] | None:
    """The settings that belong to a checkpoint, or None where there are none.

    Args:
        path: the checkpoint.
        config: what the user gave: settings, a JSON file of them, a name of ``PUBLISHED``, or nothing.
        by_itself: the checkpoint holds its settings, so that none are looked for.

    Raises:
        PretrainedError: an unknown name, or a file that holds no settings.
    """
    if config is None:
        beside = path.parent / f"{path.stem}.json"
        if by_itself:
            return None
        return read_json(beside) if beside.is_file() else PUBLISHED.get(name_of(path))
    if isinstance(config, str | Path):
        if str(config) in PUBLISHED:
            return PUBLISHED[str(config)]
        if Path(config).suffix != ".json":
            raise PretrainedError(
                f"config is {str(config)!r}; give a mapping, a JSON file, or a published name: {', '.join(PUBLISHED)}"
            )
        return read_json(Path(config).expanduser())
    plain = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(plain, Mapping):
        raise PretrainedError(f"config is {type(config).__name__}; give a mapping, a JSON file, or a published name")
    return plain


def name_of(path: Path) -> str:
    """The published name that a path has: its stem, or two folders above it, as in ve/NAME/checkpoint_8.pth."""
    return path.stem if path.stem in PUBLISHED else "/".join(path.absolute().parts[-3:-1])
