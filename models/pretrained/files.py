"""Reading files of others without running anything in them, and putting their tensors where they belong."""

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.description import Description


def _scalar(module: str) -> Callable[..., Any]:
    """What a pickled number of numpy calls, under the name of one of its versions; for numbers alone."""

    def scalar(dtype: np.dtype, content: bytes) -> Any:
        return np.frombuffer(content, dtype)[0]  # refuses objects

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *map(_scalar, ("numpy.core.multiarray", "numpy._core.multiarray")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
]
"""What a file may name beside tensors: score_sde_pytorch's learning rates are numbers of numpy."""


class PretrainedError(ValueError):
    """A file that is not what it should be; the message names the file and what is wrong with it."""


class Pretrained(NamedTuple):
    """What a checkpoint of another project holds.

    Attributes:
        description: of the score model.
        weights: of its network, by our names; the averaged ones where the file has both.
        trained: those that its optimizer left, where the file has both.
        step: optimizer steps made, as far as the file tells.
    """

    description: Description
    weights: dict[str, Tensor]
    trained: dict[str, Tensor] | None = None
    step: int = 0


class Source(NamedTuple):
    """Where a tensor of ours comes from: names in the file, and what makes one tensor of them."""

    names: tuple[str, ...]
    make: Callable[..., Tensor]


def one(name: str) -> Source:
    """The tensor as it is."""
    return Source((name,), lambda value: value)


def with_null_label(name: str) -> Source:
    """A table of classes, and zeros for the null label, which the network did not learn."""
    return Source((name,), lambda value: torch.cat([value, value.new_zeros(1, value.shape[1])]))


@contextmanager
def describing(source: object, what: str = "a network") -> Iterator[None]:
    """Whatever is wrong with settings, while they are read, is a ``PretrainedError`` that names their source."""
    try:
        yield
    except PretrainedError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise PretrainedError(f"{source} does not describe {what}: {reason}") from error


def skeleton(description: Description) -> nn.Module:
    """The network without values: its parts, names and shapes; all else of the description is tried too."""
    description.around(nn.Identity())
    with torch.device("meta"):
        return description.build_network()


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a JSON file.

    Raises:
        PretrainedError: there is none, or it holds something else.
    """
    if not path.is_file():
        raise PretrainedError(f"no file {path}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # of the encoding too
        raise PretrainedError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise PretrainedError(f"{path} holds no settings")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        PretrainedError: it is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise PretrainedError(f"{path} is damaged or cut short ({error})") from error


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors and plain containers; code in a pickle is refused, not run.

    Raises:
        PretrainedError: no such file, a damaged one, or one that holds something else.
    """
    if not path.is_file():
        raise PretrainedError(f"no file {path}")
    try:
        with torch.serialization.safe_globals(NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds, for the same reason
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {named[1]}" if named else type(error).__name__
        raise PretrainedError(
            f"{path} is not a readable file of tensors: it is damaged, cut short, or a pickle of other objects, which "
            f"is not run ({reason})"
        ) from error


def arrange(
    net: nn.Module, sources: Mapping[str, Source], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Every tensor of a network from its source, by the network's names.

    Args:
        net: the network, or its skeleton.
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
    for name in needed:
        fault = _fault(tensors[name])
        if fault:
            raise PretrainedError(f"{path}: {name} {fault}; weights are dense tensors of finite numbers")
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
        found[name] = value.float()
    return found


def _fault(value: Any) -> str | None:
    """What keeps a value of a file from being a weight."""
    if not isinstance(value, Tensor):
        return f"is no tensor but {type(value).__name__}"
    if value.layout != torch.strided or not value.is_floating_point():
        return f"is of {value.dtype}, {value.layout}"
    return None if value.isfinite().all() else "has values that are not finite"
