"""Which samples are held out: a stable hash of a sample's name decides, and nothing else.

So the split is the same on every machine, and a sample keeps its side when others are added. Only where this would
leave a side empty does the sample with the smallest, or the greatest, hash change over.
"""

from collections.abc import Iterable

import numpy as np

from data.randomness import derive_seed
from sde_lib.registry import lookup


def hash_names(names: Iterable[str]) -> np.ndarray:
    """Hashes of names, uniform in [0, 2^63), int64."""
    return np.array([derive_seed("holdout", name) for name in names], dtype=np.int64)


def held_out(hashes: np.ndarray, holdout: float) -> np.ndarray:
    """Mask of the samples whose hash is below ``holdout`` of its range, bool (N,).

    From two samples on, and unless ``holdout`` is 0, neither side is empty.

    Raises:
        ValueError: ``holdout`` is outside [0, 1).
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be a fraction in [0, 1), got {holdout!r}")
    mask = hashes < holdout * 2**63
    if holdout > 0 and len(hashes) > 1:
        mask[hashes.argmin()], mask[hashes.argmax()] = True, False
    return mask


def choose_split(hashes: np.ndarray, split: str, holdout: float, place: str) -> np.ndarray:
    """Ascending positions of the samples of a split, "train" or "test".

    Raises:
        ValueError: unknown or empty split, or ``holdout`` is outside [0, 1).
    """
    mask = held_out(hashes, holdout)
    chosen = np.flatnonzero(lookup({"train": ~mask, "test": mask}, split, f"split of {place}"))
    if not len(chosen):
        raise ValueError(
            f"the {split} split of {place} is empty: {len(hashes)} image(s) in all, {holdout=}; "
            "add images or choose another holdout"
        )
    return chosen
