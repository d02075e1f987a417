"""Drawing many samples, in batches whose noise depends on (seed, batch) only."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data import make_generator
from samplers import Sampler
from sde_lib import SDE, ScoreFn


class Generated(NamedTuple):
    """Samples (n, *) on the CPU, and the network evaluations made for each."""

    x: Tensor
    nfe: int


def generate(
    sampler: Sampler,
    sde: SDE,
    score_fn: ScoreFn,
    shape: Sequence[int],
    n: int,
    *,
    batch_size: int,
    labels: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Generated:
    """Draw n samples of the given shape (without the batch).

    Args:
        sampler: the method.
        sde: the process.
        score_fn: its score.
        shape: of one sample.
        n: number of samples.
        batch_size: samples drawn at once.
        labels: class of each sample (n,), which the score takes as ``y``; None for an unconditional score.
        seed: of all noise.
        device: where to sample.
        progress: show a bar in sampler steps.

    Raises:
        ValueError: n or batch_size below 1, or another number of labels than n.
        RuntimeError: samples that are not finite.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"{n} samples in batches of {batch_size}: both must be at least 1")
    if labels is not None and labels.shape != (n,):
        raise ValueError(f"{n} samples need labels of shape ({n},), got {tuple(labels.shape)}")
    parts, nfe = [], 0
    with tqdm(desc="sampling", unit="step", disable=None if progress else True, leave=False) as bar:
        for index, start in enumerate(range(0, n, batch_size)):
            size = min(batch_size, n - start)
            generator = make_generator(seed, "sample", index, device=device)
            score = score_fn if labels is None else partial(score_fn, y=labels[start : start + size].to(device))
            result = sampler.sample(
                sde, score, (size, *shape), generator=generator, device=device, callback=lambda _: bar.update()
            )
            parts.append(result.x.cpu())
            nfe = max(nfe, result.nfe)
    x = torch.cat(parts)
    if not x.isfinite().all():
        raise RuntimeError("samples are not finite: the network has diverged, or the sampler needs more steps")
    return Generated(x, nfe)
