"""This project's own file: weights as safetensors, and what they are the weights of as JSON in its header."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.description import Description
from models.pretrained.files import Pretrained, PretrainedError, arrange, describing, one, read_safetensors, skeleton
from models.score_model import ScoreModel

HEADER = "score_sde"
"""Key of the description in the header."""


def write(path: Path, description: Description, model: ScoreModel) -> None:
    """Put the weights of a model, and what it is, into one file."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.net.state_dict().items()}
    save_file(tensors, path, {HEADER: json.dumps(asdict(description))})


def read(path: Path, config: Mapping[str, Any] | None) -> Pretrained:
    """The network of a file.

    Raises:
        PretrainedError: the file is damaged, or was not written by ``write``.
    """
    if config is not None:
        raise PretrainedError(f"{path} holds its own configuration; leave config out")
    if not path.is_file():
        raise PretrainedError(f"no file {path}")
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(HEADER)
    except (SafetensorError, OSError) as error:
        raise PretrainedError(f"{path} is damaged or cut short ({error})") from error
    if header is None:
        raise PretrainedError(
            f"{path} does not say what network it is of; of a diffusers folder, give the folder, and any other "
            "network as its project publishes it"
        )
    with describing(f"the header of {path}"):
        description = Description(**json.loads(header))
        net = skeleton(description)
    places = {name: one(name) for name in net.state_dict()}
    return Pretrained(description, arrange(net, places, read_safetensors(path), path))
