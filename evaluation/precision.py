"""The precision in which a likelihood is computed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from models import PRECISIONS, ScoreModel
from sde_lib import lookup


@contextmanager
def computing_in(model: ScoreModel, precision: str) -> Iterator[None]:
    """Run a model in "float32" or "bfloat16" for a while.

    In float32 its products are whole ones: CUDA would by default compute convolutions with 10 bits of mantissa (TF32).
    """
    lookup(PRECISIONS, precision, "precision")
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = model.precision, [backend.allow_tf32 for backend in backends]
    try:
        model.precision = precision
        for backend in backends:
            backend.allow_tf32 = backend.allow_tf32 and precision != "float32"
        yield
    finally:
        model.precision = before[0]
        for backend, allowed in zip(backends, before[1], strict=True):
            backend.allow_tf32 = allowed
