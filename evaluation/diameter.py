"""The largest distance between two samples, which noise has to bridge (arXiv 2006.09011, technique 1)."""

import torch
from torch import Tensor
from tqdm import tqdm

BLOCK = 256
"""Samples whose distances to others are computed together."""


def diameter(x: Tensor) -> float:
    """The maximum over i, j of |x_i - x_j|, all pairs compared.

    The pair is found by float32 distances (of centred values, by matrix products), and its own is computed in float64.

    Args:
        x: samples (N, *).

    Raises:
        ValueError: there are none.
    """
    if not len(x):
        raise ValueError("the largest distance needs at least one sample")
    flat = x.flatten(1)
    centred = (flat - flat.mean(0)).float()
    best, pair = -1.0, (0, 0)
    bar = tqdm(range(0, len(centred), BLOCK), desc="distances", disable=None, dynamic_ncols=True, leave=False)
    for start in bar:
        distances = torch.cdist(centred[start : start + BLOCK], centred[start:])
        at = int(distances.argmax())
        row, column = divmod(at, distances.shape[1])
        if float(distances[row, column]) > best:
            best, pair = float(distances[row, column]), (start + row, start + column)
    return float((flat[pair[0]].double() - flat[pair[1]].double()).norm())
