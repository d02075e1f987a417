"""Drawing many samples, in batches. The noise of an image depends on (seed, its index) only."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data import derive_seed
from samplers import PathNoise, Progress, Sampler
from sde_lib import SDE
from sde_lib.arguments import require_at_least


class _Labelled:
    """A score function with the labels of a batch."""

    def __init__(self, score_fn: Callable[..., Tensor], y: Tensor) -> None:
        self.score_fn, self.y = score_fn, y

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.score_fn(x, t, y=self.y)

    @property
    def evaluations(self) -> int:
        """See ``samplers.Score``."""
        return getattr(self.score_fn, "evaluations", 1)


class Generated(NamedTuple):
    """Samples (n, *) on the CPU, and the network evaluations made for each (of the dearest batch)."""

    x: Tensor
    nfe: int


def generate(
    sampler: Sampler,
    sde: SDE,
    score_fn: Callable[..., Tensor],
    shape: Sequence[int],
    n: int,
    *,
    batch_size: int,
    labels: Tensor | None = None,
    x_init: Tensor | None = None,
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
        score_fn: its score, a ``ScoreFn``; with labels one that takes them.
        shape: of one sample.
        n: number of samples.
        batch_size: samples drawn at once.
        labels: of each sample, classes (n,) or attributes (n, A), which the score takes as ``y``; None for an
            unconditional score.
        x_init: states at the sampler's first time (n, *), instead of draws from the prior.
        seed: of all noise.
        first: index of the first sample, for several processes that share the work.
        device: where to sample.
        progress: show a bar in sampler steps.
        on_step: called after every step with the index of the batch's first sample and the progress.

    Raises:
        ValueError: n or batch_size below 1, first below 0, or another number of labels or states than n.
        SamplingError: scores or samples that are not finite.
    """
    require_at_least(1, n=n, batch_size=batch_size)
    require_at_least(0, first=first)
    if labels is not None and (labels.ndim not in (1, 2) or len(labels) != n):
        raise ValueError(f"{n} samples need labels of shape ({n},) or ({n}, A), got {tuple(labels.shape)}")
    if x_init is not None and x_init.shape != (n, *shape):
        raise ValueError(f"{n} samples of {tuple(shape)} need as many states x_init, got {tuple(x_init.shape)}")
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
            score = score_fn if labels is None else _Labelled(score_fn, labels[start : start + size].to(device))

            def report(done: Progress, start: int = start) -> None:
                bar.update()
                if on_step is not None:
                    on_step(first + start, done)

            begin = None if x_init is None else x_init[start : start + size]
            result = sampler.sample(
                sde, score, (size, *shape), x_init=begin, noise=noise, device=device, callback=report
            )
            parts.append(result.x.cpu())
            nfe = max(nfe, result.nfe)
    return Generated(torch.cat(parts), nfe)
