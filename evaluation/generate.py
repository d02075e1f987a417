"""Drawing many samples, in batches. The noise of an image depends on (seed, its index) only."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data import derive_seed
from samplers import PathNoise, Progress, Sampler
from sde_lib import SDE, ScoreFn


class Generated(NamedTuple):
    """Samples (n, *) on the CPU, and the network evaluations made for each (of the dearest batch)."""

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
    first: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    on_step: Callable[[int, Progress], None] | None = None,
) -> Generated:
    """Draw the samples first .. first + n - 1 of a seed.

    Image k is the same for every batch size, and whichever process draws it: its start and its Brownian path follow
    from (seed, k). The path is also the same for every number of steps. (Up to rounding in the network, and not for
    methods that look at the batch: the corrector "langevin", and adaptive ODE methods within their tolerance.)

    Args:
        sampler: the method.
        sde: the process.
        score_fn: its score.
        shape: of one sample.
        n: number of samples.
        batch_size: samples drawn at once.
        labels: class of each sample (n,), which the score takes as ``y``; None for an unconditional score.
        seed: of all noise.
        first: index of the first sample, for several processes that share the work.
        device: where to sample.
        progress: show a bar in sampler steps.
        on_step: called after every step with the index of the batch's first sample and the progress.

    Raises:
        ValueError: n or batch_size below 1, first below 0, or another number of labels than n.
        SamplingError: scores or samples that are not finite.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"{n} samples in batches of {batch_size}: both must be at least 1")
    if first < 0:
        raise ValueError(f"the first sample has index {first}; indices begin at 0")
    if labels is not None and labels.shape != (n,):
        raise ValueError(f"{n} samples need labels of shape ({n},), got {tuple(labels.shape)}")
    starts = range(0, n, batch_size)
    steps = sampler.step_count(sde)
    parts, nfe = [], 0
    with tqdm(
        total=steps and steps * len(starts),
        desc="sampling",
        unit="step",
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for start in starts:
            size = min(batch_size, n - start)
            noise = PathNoise([derive_seed(seed, "sample", first + start + k) for k in range(size)])
            score = score_fn if labels is None else partial(score_fn, y=labels[start : start + size].to(device))

            def report(done: Progress, start: int = start) -> None:
                bar.update()
                if on_step is not None:
                    on_step(first + start, done)

            result = sampler.sample(sde, score, (size, *shape), noise=noise, device=device, callback=report)
            parts.append(result.x.cpu())
            nfe = max(nfe, result.nfe)
    return Generated(torch.cat(parts), nfe)
