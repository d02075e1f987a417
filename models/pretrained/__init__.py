"""Weights of other projects as score models.

    from models import pretrained
    model = pretrained.load("checkpoint_15.pth", format="score_sde", config=published.get_config())

Nothing in a file is ever executed: pickles are read as tensors and plain containers only. A tensor that is missing,
left over or of another shape is an error that names it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.pretrained import diffusers, guided, score_sde
from models.pretrained.files import PretrainedError
from models.score_model import ScoreModel
from sde_lib import lookup

FORMATS: dict[str, Callable[..., ScoreModel]] = {
    "score_sde": score_sde.load,
    "diffusers": diffusers.load,
    "guided": guided.load,
}
"""Name -> (path, config) -> score model."""

__all__ = ["FORMATS", "PretrainedError", "load"]


def load(path: Path | str, format: str = "auto", *, config: Mapping[str, Any] | None = None) -> ScoreModel:
    """Read a checkpoint of another project.

    Args:
        path: the file, or the folder.
        format: a key of ``FORMATS``; "auto" goes by the name: a folder is diffusers', ``.pth`` score_sde's.
        config: the settings that the network was trained with, in that project's own names, where its files do not hold
            them.

    Raises:
        ValueError: an unknown format.
        PretrainedError: a file that is not what it should be; the message says what is wrong.
    """
    path = Path(path)
    if format == "auto":
        if not path.is_dir() and path.suffix != ".pth":
            raise PretrainedError(f"cannot tell the format of {path} by its name; give one of {', '.join(FORMATS)}")
        format = "diffusers" if path.is_dir() else "score_sde"
    return lookup(FORMATS, format, "format")(path, config)
