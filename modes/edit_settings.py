"""From the section ``editing`` of a configuration to what is measured of an image, and how it is restored from that."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from torch import Tensor

from guidance import (
    INVERSE_METHODS,
    Colourisation,
    Deblurring,
    Inpainting,
    LinearOperator,
    Posterior,
    SuperResolution,
)
from modes.sampler_settings import build_sampler
from sde_lib import SDE, lookup

RESTORING = ("inpainting", "colourisation", "super_resolution", "deblurring")
TASKS = (*RESTORING, "image_to_image", "relabel")


def check_editing(config: ConfigDict, sde: SDE, shape: tuple[int, ...], mask: str | None) -> None:
    """Fail now, and not after the work.

    Raises:
        ValueError: an unknown task or method, or one that does not fit images of this shape.
    """
    editing = config.editing
    lookup(dict.fromkeys(TASKS), editing.task, "task (editing.task)")
    lookup(INVERSE_METHODS, editing.method, "method (editing.method)")
    if (editing.task == "inpainting") != (mask is not None):
        remedy = "give --mask, such as --mask=bottom or a picture" if mask is None else "leave --mask out"
        raise ValueError(f"editing.task is {editing.task!r}, {'without' if mask is None else 'with'} a mask; {remedy}")
    build_sampler(config, sde, sampler=editing.sampler)
    channels, *sides = shape
    if editing.task == "colourisation" and channels != 3:
        raise ValueError(f"the model knows images of {channels} channel(s); only those of 3 can be colourised")
    if editing.task == "deblurring" and editing.blur > max(sides):
        raise ValueError(
            f"editing.blur is {editing.blur:g} pixels, and the model's images have {' x '.join(map(str, sides))}; give "
            "a smaller one"
        )
    if editing.task == "super_resolution" and any(side % editing.factor for side in sides):
        raise ValueError(
            f"editing.factor is {editing.factor}, which does not divide the sides of the model's images, "
            f"{' x '.join(map(str, sides))}"
        )


def build_operator(config: ConfigDict, anew: Tensor | None) -> LinearOperator:
    """What is known of the image, for a task that restores it.

    Args:
        config: with the section ``editing``.
        anew: bool (H, W), what is to be painted anew; for inpainting.
    """
    editing = config.editing
    if editing.task == "super_resolution":
        return SuperResolution(editing.factor)
    if editing.task == "deblurring":
        return Deblurring.gaussian(editing.blur)
    return Colourisation() if anew is None else Inpainting(~anew)


def restoring(
    config: ConfigDict, sde: SDE, score_fn: Callable[..., Tensor], operator: LinearOperator, y: Tensor
) -> Posterior:
    """The score of images with this measurement."""
    editing = config.editing
    options: dict[str, Any] = {
        "dps": {"scale": editing.scale},
        "pseudo_inverse": {"sigma_data": editing.sigma_data},
        "moment_matching": {"iterations": editing.iterations},
    }.get(editing.method, {})
    return INVERSE_METHODS[editing.method](sde, score_fn, operator, y, editing.noise, **options)
