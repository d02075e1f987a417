"""The order in which training sees the samples: one infinite sequence, a function of the seed alone.

It is a permutation of the data set for epoch 0, one for epoch 1, and so on. Step n of a global batch of B takes
positions n B .. (n + 1) B - 1, whatever the number of processes W; process r takes every W-th of them, from the r-th.

Data in shards are best read one shard after the other. Their epoch is dealt to ``READERS`` readers: the shards in
random order, one after the other, are cut into as many stretches of equal length, and position p of the epoch is the
next sample of stretch p mod READERS. Each stretch is shuffled in windows of ``BUFFER`` / READERS samples. So each of W
processes, W a divisor of READERS, reads 1 / W of the shards only, and nothing has to be kept but the windows. Data of
no more than ``BUFFER`` samples are shuffled as a whole, like those without shards.
"""

from functools import lru_cache

import torch
from torch import Tensor

from data.randomness import make_generator

READERS = 8
"""Places in the shards that are read at once, over all processes."""
BUFFER = 8192
"""Samples that are shuffled together, over all readers."""


def require_rank(rank: int, world_size: int) -> None:
    """Raise ValueError unless this is the number of one of so many processes."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..world_size - 1, got {rank=}, {world_size=}")


def batch_indices(
    length: int,
    batch_size: int,
    step: int,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    shards: tuple[int, ...] = (),
) -> list[int]:
    """Indices that process ``rank`` takes at ``step``: a pure function of its arguments.

    Args:
        length: size of the data set.
        batch_size: the global batch over all processes; it may exceed ``length``, and batches straddle epochs.
        step: 0, 1, 2, ...
        seed: of the run.
        rank: this process, 0 .. world_size - 1.
        world_size: number of processes; it must divide ``batch_size``.
        shards: lengths of the stretches in which the samples are stored, if they are best read so.

    Raises:
        ValueError: an argument is out of range, or ``world_size`` does not divide ``batch_size``.
    """
    if length < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"need length >= 1, batch_size >= 1 and step >= 0, got {length=}, {batch_size=}, {step=}")
    require_rank(rank, world_size)
    if batch_size % world_size:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared evenly by {world_size} processes; use a multiple of {world_size}"
        )
    place, end = step * batch_size, (step + 1) * batch_size
    indices: list[int] = []
    while place < end:
        epoch, offset = divmod(place, length)
        order = epoch_order(length, seed, epoch, shards)[offset : offset + end - place]
        first = (rank - place) % world_size  # of this process, counted from here
        indices += order[first::world_size].tolist()
        place += len(order)
    return indices


@lru_cache(maxsize=4)
def epoch_order(length: int, seed: int, epoch: int, shards: tuple[int, ...] = ()) -> Tensor:
    """The permutation of one epoch, int64 (length,); the cache spares computing it anew at every step."""
    generator = make_generator(seed, "order", epoch)
    if not shards or length <= BUFFER:
        return torch.randperm(length, generator=generator)
    dealt = torch.randperm(len(shards), generator=make_generator(seed, "shards", epoch))
    blocks = torch.arange(length).split(list(shards))
    stretches = torch.cat([blocks[shard] for shard in dealt]).tensor_split(READERS)
    order = torch.empty(length, dtype=torch.int64)
    for reader, stretch in enumerate(stretches):
        windows = stretch.split(BUFFER // READERS)
        order[reader::READERS] = torch.cat([w[torch.randperm(len(w), generator=generator)] for w in windows])
    return order
