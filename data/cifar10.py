"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in 10 classes (A. Krizhevsky, 2009)."""

import warnings
from pathlib import Path

import numpy as np
import torch

from data.dataset import TensorDataset
from data.quantizer import Quantizer
from sde_lib.registry import lookup

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


class CIFAR10(TensorDataset):
    """Shape (3, 32, 32), 256 levels, 10 classes; 50,000 images to train on, 10,000 to test. Never downloads.

    Args:
        split: "train" or "test".
        root: the folder that holds ``cifar-10-batches-py``.
        low: model value of level 0.
        high: model value of level 255.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: unknown split, ``low`` and ``high`` make no range, or files are damaged (their checksums are
            verified before they are read).
    """

    def __init__(self, split: str = "train", *, root: str | Path, low: float = -1.0, high: float = 1.0) -> None:
        from torchvision.datasets import CIFAR10 as Source  # here, because it takes a second to import

        root = Path(root).expanduser()
        train = lookup({"train": True, "test": False}, split, "split of cifar10")
        _check_present(root / Source.base_folder, [name for name, _ in Source.train_list + Source.test_list])
        try:
            with warnings.catch_warnings():
                # the files are pickles of an old numpy, which some newer ones remark on
                warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
                source = Source(root, train=train, download=False)
        except RuntimeError:
            raise ValueError(
                f"files in {root / Source.base_folder} are damaged (wrong checksum); unpack {URL} again"
            ) from None
        super().__init__(
            "cifar10",
            torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(source.targets, dtype=torch.int64),
            quantizer=Quantizer(low=low, high=high),
            num_classes=10,
        )


def _check_present(folder: Path, batches: list[str]) -> None:
    expected = [*batches, "batches.meta"]
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"CIFAR-10 is not complete in {folder}: expected {', '.join(expected)}; missing {', '.join(missing)}. "
            f"Unpack {URL} in {folder.parent} and give that as root"
        )
