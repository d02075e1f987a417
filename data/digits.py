"""Scikit-learn's handwritten digits: 1,797 real 8x8 images of 17 grey levels, inside an installed package.

The default data set: nothing to download, and small enough to train on in a minute. Source: E. Alpaydin and
C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

import numpy as np
import torch

from data.dataset import TensorDataset
from data.quantizer import Quantizer
from sde_lib.registry import lookup

TRAIN_SIZE, TEST_SIZE = 1500, 297


class Digits(TensorDataset):
    """Shape (1, 8, 8), levels 0 .. 16, classes 0 .. 9; 1,500 images to train on and 297 held out.

    Args:
        split: "train" or "test"; the split is fixed, and stratified by class.
        low: model value of level 0.
        high: model value of level 16.

    Raises:
        ValueError: unknown split, or ``low`` and ``high`` make no range.
    """

    def __init__(self, split: str = "train", *, low: float = -1.0, high: float = 1.0) -> None:
        from sklearn.datasets import load_digits  # here, because it takes a second to import

        source = load_digits()
        chosen = split_indices(source.target, split)
        super().__init__(
            "digits",
            torch.from_numpy(source.images[chosen].astype(np.uint8)).unsqueeze(1),
            torch.from_numpy(source.target[chosen].astype(np.int64)),
            quantizer=Quantizer(17, low, high),
            num_classes=10,
        )


def split_indices(target: np.ndarray, split: str) -> np.ndarray:
    """Ascending positions, in scikit-learn's order, of the images of a split; ``target`` (1797,) are their classes."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(len(target)), train_size=TRAIN_SIZE, test_size=TEST_SIZE, stratify=target, random_state=0
    )
    return np.sort(lookup({"train": train, "test": test}, split, "split of digits"))
