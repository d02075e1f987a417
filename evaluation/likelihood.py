"""Bits per dimension of a data set: dequantise, solve the probability-flow ODE, average."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data import Batch, Dataset, Quantizer, eval_batches, make_generator, prepare
from sde_lib import LikelihoodResult, bits_per_dim


@dataclass(frozen=True)
class LikelihoodReport:
    """Result of an evaluation.

    Attributes:
        bits_per_dim: mean over the images. With dequantised levels a bound on the discrete value from above; for
            continuous data the differential entropy in bits (bin width 1).
        std_error: standard error of that mean over the images (it contains the noise of probes and dequantisation).
        images: number of images.
        nfe: largest number of network evaluations of a batch.
        seconds: wall time.
        values: bits/dim of each image, in the order of the split.
    """

    bits_per_dim: float
    std_error: float
    images: int
    nfe: int
    seconds: float
    values: list[float]

    def save(self, path: Path, **provenance: Any) -> None:
        """Write everything as JSON, with what else tells how it came about; an unknown standard error is null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        error = None if math.isnan(self.std_error) else self.std_error
        path.write_text(json.dumps({**asdict(self), "std_error": error, **provenance}, indent=1))

    def __str__(self) -> str:
        error = "" if math.isnan(self.std_error) else f" ± {self.std_error:.4f}"
        return f"{self.bits_per_dim:.4f}{error} bits/dim on {self.images} image{'s' if self.images > 1 else ''}"


def evaluate_likelihood(
    log_prob_fn: Callable[[Tensor, Tensor | None, torch.Generator], LikelihoodResult],
    dataset: Dataset,
    *,
    num_images: int = 0,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> LikelihoodReport:
    """Mean bits/dim of the first images of a data set.

    The dequantisation of image k depends on (seed, k) only, the probes of a batch on (seed, its number).

    Args:
        log_prob_fn: (x: (B, *), labels (B,) or None, generator) -> result of ``log_likelihood``.
        dataset: the split to score.
        num_images: how many; 0 for all.
        batch_size: images at once.
        seed: of dequantisation and probes.
        device: where to compute.
    """
    if num_images < 0:
        raise ValueError(f"num_images is {num_images}; give 0 for all, or a positive number")
    n = min(num_images or len(dataset), len(dataset))
    bin_width = dataset.quantizer.bin_width if dataset.quantizer else 1.0
    started = time.monotonic()
    values, nfe = [], 0
    with tqdm(total=n, desc="likelihood", unit="image", disable=None, leave=False) as bar:
        for index, raw in enumerate(eval_batches(dataset, batch_size, indices=range(n))):
            x = _dequantized(raw, dataset.quantizer, seed, first=index * batch_size).to(device)
            y = None if raw.y is None else raw.y.to(device)
            result = log_prob_fn(x, y, make_generator(seed, "probes", index, device=device))
            values.append(bits_per_dim(result.log_prob, math.prod(dataset.shape), bin_width).cpu().double())
            nfe = max(nfe, result.nfe)
            bar.update(len(x))
    bits = torch.cat(values)
    error = float(bits.std() / math.sqrt(n)) if n > 1 else float("nan")
    return LikelihoodReport(float(bits.mean()), error, n, nfe, time.monotonic() - started, bits.tolist())


def _dequantized(raw: Batch, quantizer: Quantizer | None, seed: int, first: int) -> Tensor:
    """Model inputs of a batch that begins with image ``first``; each image has its own stream of noise."""
    images = (
        prepare(
            Batch(x.unsqueeze(0)),
            quantizer,
            dequantize=True,
            flip=False,
            generator=make_generator(seed, "dequantize", first + i),
        )
        for i, x in enumerate(raw.x)
    )
    return torch.cat([image.x for image in images])
