"""Reading files of others without running anything in them, and putting their tensors where they belong."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class PretrainedError(ValueError):
    """A file that is not what it should be; the message names the file and what is wrong with it."""


class Source(NamedTuple):
    """Where a tensor of ours comes from: names in the file, and what makes one tensor of them."""

    names: tuple[str, ...]
    make: Callable[..., Tensor]


def one(name: str) -> Source:
    """The tensor as it is."""
    return Source((name,), lambda value: value)


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors and plain containers; code in a pickle is refused, not run.

    Raises:
        PretrainedError: no such file, a damaged one, or one that holds something else.
    """
    if not path.is_file():
        raise PretrainedError(f"no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, for the same reason
        reason = str(error).strip().split("\n")[0]
        raise PretrainedError(
            f"{path} is not a readable file of tensors: it is damaged, cut short, or a pickle of other objects, which "
            f"is not run ({type(error).__name__}: {reason[:120]})"
        ) from error


def fill(net: nn.Module, sources: Mapping[str, Source], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load every tensor of a network from its source.

    Args:
        net: the network.
        sources: name in the network -> where it comes from.
        tensors: of the file.
        path: of the file, for messages.

    Raises:
        PretrainedError: a tensor is missing, left over, or of another shape.
    """
    needed = [name for source in sources.values() for name in source.names]
    missing, extra = [n for n in needed if n not in tensors], sorted(set(tensors) - set(needed))
    for kind, names in (("lacks the tensor", missing), ("has a tensor that the configuration does not have,", extra)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise PretrainedError(f"{path} {kind} {names[0]}{more}: is it of another configuration?")
    own = net.state_dict()
    found = {}
    for name, source in sources.items():
        try:
            value = source.make(*(tensors[part] for part in source.names))
        except (RuntimeError, IndexError) as error:
            raise PretrainedError(f"{path}: {source.names[0]} has an unexpected shape ({error})") from error
        if value.shape != own[name].shape:
            raise PretrainedError(
                f"{path}: {', '.join(source.names)} makes a tensor of shape {tuple(value.shape)}, but the "
                f"configuration needs {tuple(own[name].shape)}"
            )
        found[name] = value
    net.load_state_dict(found)
