"""Weights of other projects as score models.

    from models import pretrained
    model = pretrained.load("ddpm-cifar10-32")                                          # a folder of diffusers
    model = pretrained.load("checkpoint_24.pth", config="ve/cifar10_ncsnpp_continuous")  # of score_sde_pytorch
    model = pretrained.load("64x64_diffusion.pt")                                       # of guided-diffusion

Nothing in a file is ever executed: pickles are read as tensors and plain containers only. A tensor that is missing,
left over or of another shape is an error that names it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.pretrained import diffusers, guided, native, score_sde
from models.pretrained.files import Pretrained, PretrainedError, read_torch
from models.pretrained.published import settings_of
from models.score_model import ScoreModel
from sde_lib import lookup

FORMATS: dict[str, Callable[[Path, Mapping[str, Any] | None], Pretrained]] = {
    "score_sde": score_sde.read,
    "diffusers": diffusers.read,
    "guided": guided.read,
    "native": native.read,
}
"""Name -> (path, config) -> what the checkpoint holds."""

__all__ = ["FORMATS", "Pretrained", "PretrainedError", "load", "read"]


def load(path: Path | str, format: str = "auto", *, config: Mapping[str, Any] | str | Path | None = None) -> ScoreModel:
    """A checkpoint of another project as a score model, in evaluation mode.

    Args:
        path: the file, or the folder.
        format: a key of ``FORMATS``, or "auto" to go by the content.
        config: the settings that the network was trained with, in that project's own names, where its files do not hold
            them: a mapping, a JSON file, or the name of a published one (``published``). None for the name that the
            path has, or a JSON file of the checkpoint's name beside it.

    Raises:
        ValueError: an unknown format.
        PretrainedError: a file that is not what it should be; the message says what is wrong.
    """
    found = read(path, format, config=config)
    model = found.description.build()
    model.net.load_state_dict(found.weights)
    return model.eval()


def read(path: Path | str, format: str = "auto", *, config: Mapping[str, Any] | str | Path | None = None) -> Pretrained:
    """What a checkpoint holds, by our names; arguments and errors are those of ``load``."""
    path = Path(path).expanduser()
    if not (path.is_file() or path.is_dir()):
        raise PretrainedError(f"no file or folder {path}")
    name = detect(path) if format == "auto" else format
    reader = lookup(FORMATS, name, "format")
    return reader(path, settings_of(path, config, by_itself=name in ("diffusers", "native")))


def detect(path: Path) -> str:
    """The format of a file or folder, by what it holds.

    Raises:
        PretrainedError: it is of none.
    """
    if path.is_dir():
        return "diffusers"
    if path.suffix == ".safetensors":
        return "native"
    content = read_torch(path)
    if isinstance(content, Mapping):
        if {"model", "ema"} <= set(content):
            return "score_sde"
        if any(str(name).startswith("input_blocks.") for name in content):
            return "guided"
    raise PretrainedError(f"cannot tell the format of {path} by its content; give one of {', '.join(FORMATS)}")
