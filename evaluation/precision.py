"""The precision in which likelihoods and features are computed."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from models import PRECISIONS, ScoreModel
from sde_lib import lookup


@contextmanager
def computing_in(model: ScoreModel, precision: str) -> Iterator[None]:
    """Run a model in "float32" or "bfloat16" for a while.

    In float32 its products are whole ones: CUDA would by default compute convolutions with 10 bits of mantissa (TF32).
    """
    lookup(PRECISIONS, precision, "precision")
    before = model.precision
    try:
        model.precision = precision
        with whole_products() if precision == "float32" else nullcontext():
            yield
    finally:
        model.precision = before


@contextmanager
def whole_products() -> Iterator[None]:
    """Context in which CUDA multiplies float32 numbers with all their bits."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
