"""From a data set to batches; the only place that turns raw samples into model inputs.

The order is that of ``data.order``, and dequantisation noise and flips are those of the sample's place in the step
(``StepDraws``): a run may stop, resume, load in the background, or be shared by several processes without changing a
bit of what it sees.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, islice

import torch

from data.dataset import Batch, Dataset
from data.draws import StepDraws
from data.order import batch_indices
from data.quantizer import Quantizer


def prepare(raw: Batch, quantizer: Quantizer | None, draws: StepDraws, *, dequantize: bool, flip: bool) -> Batch:
    """Turn a raw batch into float32 model input.

    Args:
        raw: what ``Dataset.fetch`` returned.
        quantizer: that of the data set; None leaves the (continuous) values as they are.
        draws: source of the noise and of the flips.
        dequantize: levels become uniform in their bin rather than a point; nothing to do for continuous data.
        flip: mirror each image left to right with probability 1/2.

    Raises:
        ValueError: ``flip`` is asked of data that are not images.
    """
    if flip and raw.x.ndim != 4:
        raise ValueError(f"only images (B, C, H, W) can be flipped, got shape {tuple(raw.x.shape)}; set flip to False")
    if quantizer is None:
        x = raw.x.float()
    elif dequantize:
        x = quantizer.place(raw.x, draws.uniform("dequantize", raw.x.shape[1:]))
    else:
        x = quantizer.encode(raw.x)
    if flip:
        mirrored = draws.rows("flip", lambda generator: torch.rand(draws.batch, generator=generator)) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
    return Batch(x, raw.y)


def train_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    dequantize: bool,
    flip: bool,
    workers: int = 0,
    prefetch: int = 2,
) -> Generator[Batch, None, None]:
    """Yield the model inputs of steps start_step, start_step + 1, ... without end.

    The global batch of step n is a pure function of (dataset, batch_size, seed, n) and of the two options below,
    whatever the starting step and the number of workers and processes; process ``rank`` gets its rows rank,
    rank + world_size, ...

    Args:
        dataset: source of the samples.
        batch_size: the global batch over all processes.
        seed: of the run.
        start_step: first step.
        rank: this process.
        world_size: number of processes.
        dequantize: see ``prepare``.
        flip: see ``prepare``.
        workers: threads that load in the background; 0 loads in the caller. Close the iterator to stop them.
        prefetch: batches that are loaded ahead (at least one per worker).

    Raises:
        ValueError: an argument is out of range. An error while loading reaches the caller unchanged.
    """
    shards = getattr(dataset, "shards", ())
    indices = partial(
        batch_indices, len(dataset), batch_size, seed=seed, rank=rank, world_size=world_size, shards=shards
    )
    indices(start_step)  # wrong arguments fail here, not at the first batch
    if workers < 0 or prefetch < 1:
        raise ValueError(f"need workers >= 0 and prefetch >= 1, got {workers=}, {prefetch=}")

    def load(step: int) -> Batch:
        raw = dataset.fetch(indices(step))
        draws = StepDraws(seed, step, batch_size, range(rank, batch_size, world_size))
        return prepare(raw, dataset.quantizer, draws, dequantize=dequantize, flip=flip)

    if workers == 0:
        return (load(step) for step in count(start_step))
    return _in_background(load, count(start_step), workers, ahead=max(prefetch, workers))


def _in_background(
    load: Callable[[int], Batch], steps: Iterator[int], workers: int, ahead: int
) -> Generator[Batch, None, None]:
    """Yield ``load(step)`` in order, with the next ``ahead`` of them under way in threads."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="data")
    try:
        pending = deque(pool.submit(load, step) for step in islice(steps, ahead))
        while True:
            batch = pending.popleft().result()
            pending.append(pool.submit(load, next(steps)))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def eval_batches(dataset: Dataset, batch_size: int, *, indices: Sequence[int] | None = None) -> Iterator[Batch]:
    """Yield raw batches in order, each sample once; the last batch may be smaller.

    Args:
        dataset: source of the samples.
        batch_size: largest number of samples in a batch.
        indices: which samples, in this order; None for all.

    Raises:
        ValueError: ``batch_size`` is less than 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = range(len(dataset)) if indices is None else indices
    return (dataset.fetch(order[start : start + batch_size]) for start in range(0, len(order), batch_size))
