"""Many samples by several processes, or by one that may be killed: batches are dealt out, and kept as they are done.

Batch b, of the samples b B .. (b + 1) B - 1, goes to process b mod W. Since a sample depends on (seed, index) and the
batches are those of one process, so are the samples, to the bit.
"""

from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from data.order import require_rank
from evaluation.generate import Generated
from evaluation.parts import Parts
from sde_lib.arguments import require_at_least


def generate_together(
    draw: Callable[[int, int], Generated],
    n: int,
    *,
    batch_size: int,
    parts: Parts,
    rank: int = 0,
    world_size: int = 1,
    first_again: bool = False,
    work: str = "sampling",
) -> Generated | None:
    """Draw the samples 0 .. n - 1.

    Args:
        draw: (first, size) -> the samples first .. first + size - 1, such as ``generate`` makes.
        n: number of samples.
        batch_size: samples drawn at once.
        parts: where finished batches are kept and found again; their folder is for this n and batch size alone.
        rank: this process; with several, all need the same ``parts``.
        world_size: number of processes.
        first_again: the first batch is drawn even if it is there, since something watches how it comes about.
        work: what the bar says is being done.

    Returns:
        the samples. Of several processes only that of rank 0 waits for the others and returns them; these return None
        when their share is done.

    Raises:
        ValueError: n or batch_size below 1, or a rank that is none of the processes.
    """
    require_at_least(1, n=n, batch_size=batch_size)
    require_rank(rank, world_size)
    batches = [range(first, min(first + batch_size, n)) for first in range(0, n, batch_size)][rank::world_size]
    done = parts.done()
    kept = [batch for batch in batches if done.issuperset(batch)]
    started, total = sum(map(len, kept)), sum(map(len, batches))
    if started and rank == 0:
        print(f"{work}: {started} of {total} samples were done by an earlier run; going on from there", flush=True)
    with tqdm(
        total=total,
        initial=started,
        desc=work,
        unit="sample",
        disable=None if rank == 0 else True,
        leave=False,
    ) as bar:
        for batch in batches:
            if batch in kept and not (first_again and batch.start == 0):
                continue
            x, nfe = draw(batch.start, len(batch))
            parts.save({"index": np.array(batch), "x": x.detach().numpy(), "nfe": np.full(len(batch), nfe)})
            bar.update(0 if batch in kept else len(batch))
        if rank:
            return None
        parts.wait(range(n), lambda left: bar.set_postfix_str(f"waiting for {left} samples of other processes"))
    rows = parts.load()
    if rows is None:
        raise OSError(f"{parts.folder} is gone: another run has removed it; start again")
    return Generated(torch.from_numpy(rows["x"]), int(rows["nfe"].max()))
