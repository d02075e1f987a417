"""What turns samples into features, in which sets of samples are compared.

An extractor sees images as a PNG would hold them: uint8 (B, 3, H, W), grey ones repeated in all three channels; it
brings them to its own size itself. Continuous samples, such as points in the plane, are their own features.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data import Quantizer
from sde_lib.registry import lookup


class Features(NamedTuple):
    """Of a batch, on the CPU: ``values`` float32 (B, D), and logits of classes (B, K) or None."""

    values: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """Samples -> features.

    Attributes:
        name: what it is called in results.
        weights: a hash that changes with its weights.
        extract: of a batch; see the head of this file.
        about: one more thing to tell, such as how good it is; "" for nothing.
        fid: whether these are the features of which the FID is made.
        scores: whether it gives logits of classes too.
    """

    name: str
    weights: str
    extract: Callable[[Tensor], Features]
    about: str = ""
    fid: bool = False
    scores: bool = False

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Features:
        """Features of a batch of pixels, or of points.

        Raises:
            ValueError: they are no rows, or not finite as float32.
        """
        values, logits = self.extract(samples)
        n = len(samples)
        if not isinstance(values, Tensor):
            kind = type(values).__name__
            raise ValueError(f"the extractor {self.name} made a {kind}; it must make a tensor ({n}, D)")
        if values.ndim != 2 or len(values) != n or not values.shape[1] or not values.is_floating_point():
            raise ValueError(
                f"the extractor {self.name} made {values.dtype} of shape {tuple(values.shape)} of {n} samples; it must "
                f"make floating-point features ({n}, D) with D of at least 1"
            )
        values = values.float().cpu()
        if not values.isfinite().all():
            raise ValueError(
                f"the extractor {self.name} made features that are not finite as float32; mend it, or choose another "
                "evaluation.extractor"
            )
        return Features(values, None if logits is None else logits.float().cpu())

    def __str__(self) -> str:
        told = ", ".join(filter(None, [f"weights {self.weights}" if self.weights else "", self.about]))
        return f"{self.name} ({told})" if told else self.name


def as_seen(x: Tensor, quantizer: Quantizer | None) -> Tensor:
    """Model values (B, *) as an extractor sees them: pixels, or points as they are."""
    if quantizer is None:
        return x.flatten(1).float()
    pixels = quantizer.to_uint8(x)
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def identity() -> Extractor:
    """Samples that are their own features."""
    return Extractor("identity", "", Features)


def own_extractor(name: str, device: torch.device | str = "cpu") -> Extractor:
    """A function or network of a user's, by its place, ``module:attribute``.

    It is called with uint8 images (B, 3, H, W), values 0 .. 255, on ``device`` (points: float32 (B, D)), and returns
    features (B, D). A torch.nn.Module is moved there and used in evaluation mode. Such as, in my_features.py,

        def features(images):
            return torch.nn.functional.adaptive_avg_pool2d(images / 255, 4).flatten(1)

    with --config.evaluation.extractor=my_features:features.

    Raises:
        ValueError: there is no such thing, or it cannot be called.
    """
    module, _, attribute = name.partition(":")
    sys.path.append(str(Path.cwd()))  # last: a module of that name elsewhere is the one that is installed
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a module is a program: it may raise anything, and leave
        raise ValueError(
            f"evaluation.extractor is {name!r}, but that cannot be imported ({type(error).__name__}: {error}); it is "
            "MODULE:ATTRIBUTE, of a module that is installed or lies in the working directory"
        ) from error
    finally:
        sys.path.pop()
    if not callable(found) or inspect.isclass(found):
        raise ValueError(f"evaluation.extractor is {name!r}, a {type(found).__name__}; give a function or a network")
    if isinstance(found, nn.Module):
        found = found.to(device).eval()
        weights = hash_of(found.state_dict())
    else:
        source = getattr(sys.modules[module], "__file__", None)
        weights = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:8] if source else ""

    def extract(samples: Tensor) -> Features:
        try:
            return Features(found(samples.to(device)))
        except MemoryError:
            raise
        except Exception as error:  # a RuntimeError stays one, since it may be of memory, for which there is advice
            kind = RuntimeError if isinstance(error, RuntimeError) else ValueError
            told = f"{samples.dtype} of shape {tuple(samples.shape)}: {type(error).__name__}: {error}"
            raise kind(f"the extractor {name} failed on {told}") from error

    return Extractor(name, weights, extract)


def hash_of(weights: Mapping[str, Tensor]) -> str:
    """Eight hexadecimal digits."""
    digest = hashlib.sha256()
    for key, value in weights.items():
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def optional(module: str) -> object:
    """A module of torch-fidelity, which is an extra.

    Raises:
        ImportError: it is not installed.
    """
    return importlib.import_module(f"torch_fidelity.{module}")


MISSING = "pip install 'score-sde[eval]'"
"""What brings torch-fidelity."""


def choose_extractor(
    name: str, shape: tuple[int, ...], quantizer: Quantizer | None, labelled: bool, dataset: str
) -> str:
    """The extractor that is asked for, or where that is "auto" the one that fits the data.

    Args:
        name: auto, a key of ``EXTRACTORS``, or ``module:attribute``.
        shape: of a sample.
        quantizer: of the data set; None for points.
        labelled: whether the data have labels.
        dataset: its name, for messages.

    Raises:
        ValueError: none fits, or that one does not.
    """
    images = quantizer is not None and len(shape) == 3
    if name == "auto":
        if not images:
            return "identity"
        if shape[0] == 3 and min(shape[1:]) >= INCEPTION_SIDE:
            return "inception"
        if labelled:
            return "classifier"
        raise ValueError(
            f"evaluation.extractor is auto, but the images of {dataset!r} are grey or small {shape} and have no labels "
            "to train a classifier on; choose inception, or give a network of yours as module:attribute"
        )
    if ":" in name:
        return name
    fits = lookup(EXTRACTORS, name, "evaluation.extractor (or module:attribute)")
    if images != (fits == "images"):
        raise ValueError(
            f"evaluation.extractor is {name!r}, which is for {fits}; one sample of {dataset!r} has shape {shape}"
        )
    if name == "classifier" and not labelled:
        raise ValueError(f"evaluation.extractor is 'classifier', but {dataset!r} has no labels to train one on")
    return name


EXTRACTORS = {"inception": "images", "classifier": "images", "identity": "points"}
"""Name -> what it is for."""
INCEPTION_SIDE = 32
"""Least side of the images for which "auto" takes Inception."""
