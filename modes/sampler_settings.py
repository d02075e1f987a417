"""From the section ``sampling`` of a configuration to a sampler."""

from typing import Any

from ml_collections import ConfigDict

from modes.digest import digest
from samplers import GRIDS, Sampler, get_sampler, sampler_options
from sde_lib import SDE
from training.builders import build_sde

GUIDANCE = ("labels", "guidance", "guidance_low", "guidance_high")
"""Settings of sampling that belong to conditional models."""
GENERAL = ("sampler", "num_images", "batch_size", "seed", "trajectory", *GUIDANCE)
"""Settings of sampling that are not the sampler's."""


def build_sampler(config: ConfigDict, sde: SDE, **changes: Any) -> Sampler:
    """The sampler; it gets those settings of ``config.sampling`` that it has and that are not None, and ``changes``."""
    settings = {**config.sampling.to_dict(), **changes}
    name = settings["sampler"]
    given = {key: settings[key] for key in sampler_options(name) if settings.get(key) is not None}
    sampler = get_sampler(name, **given)
    sampler.time_grid(sde)  # a grid that cannot be made fails here, not after the training
    return sampler


def sampler_settings(config: ConfigDict, default: ConfigDict, sde: SDE, **apart: Any) -> tuple[dict[str, Any], str]:
    """What the chosen sampler works with, and a mark for file names.

    Args:
        config: the resolved configuration.
        default: the documented default.
        sde: the process.
        **apart: what else keeps samples apart, and is hashed with the settings.

    Returns:
        its settings with the grid's times, and the settings that all samplers share; the mark is empty where all but
        the number of steps are the defaults, else "_" and a hash of them.
    """
    sampling, sampler = config.sampling, build_sampler(config, sde)
    own = {key: sampling[key] for key in (*sampler_options(sampling.sampler), *GUIDANCE)}
    changed = {key: value for key, value in own.items() if key != "steps" and value != default.sampling[key]} | apart
    general = {key: sampling[key] for key in GENERAL}
    resolved = {"steps": sampler.steps, "grid": sampler.grid, "times": sampler.time_grid(sde).tolist()}
    return general | own | resolved, f"_{digest(changed)}" if changed else ""


def unused_settings(config: ConfigDict, default: ConfigDict) -> list[str]:
    """Keys of ``config.sampling`` that differ from the default though the chosen sampler makes no use of them."""
    sampling, sde = config.sampling, build_sde(config)
    sampler = build_sampler(config, sde)
    used = {*GENERAL, *sampler_options(sampling.sampler)}
    if sampler.step_count(sde) is None:  # adaptive
        used -= {"steps", "grid", "rho"}
    if sampler.grid not in GRIDS:  # the times themselves
        used = used - {"steps", "t_end", "rho"} | {"grid"}
    return [key for key, value in sampling.items() if key not in used and value != default.sampling[key]]
