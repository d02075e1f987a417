"""MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., 2017): 70,000 grey images of 28 x 28 in 10 classes."""

from pathlib import Path

import torch

from data.dataset import TensorDataset
from data.quantizer import Quantizer
from sde_lib.registry import lookup

FILES = ("images-idx3-ubyte", "labels-idx1-ubyte")
SIZES = {"train": 60_000, "test": 10_000}


class MNIST(TensorDataset):
    """Shape (1, 28, 28), 256 levels, 10 classes; 60,000 images to train on, 10,000 to test. Never downloads.

    Args:
        split: "train" or "test".
        root: the folder that holds ``MNIST/raw/train-images-idx3-ubyte`` and its companions, as torchvision lays them.
        low: model value of level 0.
        high: model value of level 255.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: unknown split, ``low`` and ``high`` make no range, or files are damaged.
    """

    source = "MNIST"

    def __init__(self, split: str = "train", *, root: str | Path, low: float = -1.0, high: float = 1.0) -> None:
        import torchvision.datasets  # here, because it takes a second to import

        root = Path(root).expanduser()
        stem = lookup({"train": "train", "test": "t10k"}, split, f"split of {self.source}")
        raw = root / self.source / "raw"
        names = (f"{part}-{file}" for part in ("train", "t10k") for file in FILES)
        missing = [name for name in names if not (raw / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.source} is not complete in {raw}: missing {', '.join(missing)} (unpacked, without .gz). "
                f"torchvision.datasets.{self.source}(root, download=True) gets them; give that root"
            )
        try:
            found = getattr(torchvision.datasets, self.source)(root, train=split == "train", download=False)
        except (AssertionError, ValueError, KeyError, RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"files of {stem} in {raw} are damaged ({error}); get them again") from error
        if found.data.shape != (SIZES[split], 28, 28) or found.targets.shape != (SIZES[split],):
            raise ValueError(
                f"files of {stem} in {raw} hold images {tuple(found.data.shape)} and labels "
                f"{tuple(found.targets.shape)}, not {SIZES[split]} of 28 x 28; get them again"
            )
        super().__init__(
            self.source,
            found.data.unsqueeze(1),
            found.targets.to(torch.int64),
            quantizer=Quantizer(low=low, high=high),
            num_classes=10,
            label_names=[] if self.source == "MNIST" else found.classes,
        )


class FashionMNIST(MNIST):
    """The same of clothes, in ``FashionMNIST/raw``."""

    source = "FashionMNIST"
