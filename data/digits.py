"""Scikit-learn's handwritten digits: 1,797 real 8x8 images of 17 grey levels, inside an installed package.

The default data set: nothing to download, and small enough to train on in a minute. Source: E. Alpaydin and
C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from data.dataset import TensorDataset
from data.quantizer import Quantizer
from sde_lib.registry import lookup

TRAIN_SIZE, TEST_SIZE = 1500, 297
HELD_OUT = (
    "000004883524104000064100934205001a00080100200028062812001000940a0080111204001880020110a000080a8020441504480240a0"
    "0a2000004000980000800020004805c400104000a0100005404800301000020ec009000024040083a8013c00a6980a0000000308400804a0"
    "180802024041400080040044043642010216004400004040a080180a5000840981618408108008000c00c02000068a000008820081003808"
    "038008190000100e01000010a02100322829004044c88028020102030002000822a2402c24042108a8408090c02014028212021001380415"
    "00"
)
"""One bit for each image, 1 for those held out: what ``train_test_split(stratify=target, random_state=0)`` chose."""


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
        images, target = _table()
        chosen = split_indices(split)
        super().__init__(
            "digits",
            torch.from_numpy(images[chosen]).unsqueeze(1),
            torch.from_numpy(target[chosen]),
            quantizer=Quantizer(17, low, high),
            num_classes=10,
        )


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) and classes (1797,): the file itself, because ``load_digits`` takes a second to import."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise OSError("the digits are inside scikit-learn, which is not installed; pip install scikit-learn")
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def split_indices(split: str) -> np.ndarray:
    """Ascending positions, in scikit-learn's order, of the images of a split."""
    held_out = np.unpackbits(np.frombuffer(bytes.fromhex(HELD_OUT), np.uint8), count=TRAIN_SIZE + TEST_SIZE)
    return np.flatnonzero(held_out == lookup({"train": 0, "test": 1}, split, "split of digits"))
