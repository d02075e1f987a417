"""No data: the shape, levels and classes of what a network draws, where nothing to train on or to score is at hand."""

from collections.abc import Sequence

from data.dataset import Batch, Dataset
from data.labels import check_kinds
from data.quantizer import Quantizer
from sde_lib.registry import lookup


class NoData(Dataset):
    """A data set without samples.

    Args:
        split: "train" or "test".
        image_size: side of the square images, in pixels.
        channels: of an image.
        classes: number of class labels.
        attributes: names of the attributes, divided by commas, where these are the labels.
        levels: of a pixel.
        low: model value of the darkest level.
        high: model value of the brightest level.
    """

    name = "none"

    def __init__(
        self,
        split: str = "train",
        *,
        image_size: int,
        channels: int = 3,
        classes: int = 0,
        attributes: str = "",
        levels: int = 256,
        low: float = -1.0,
        high: float = 1.0,
    ) -> None:
        lookup({"train": 0, "test": 1}, split, "split of none")
        self.shape = (channels, image_size, image_size)
        self.quantizer = Quantizer(levels, low, high)
        self.num_classes = classes
        self.label_names = tuple(name.strip() for name in attributes.split(",")) if attributes else ()
        self.num_attributes = len(self.label_names)
        check_kinds(self.num_classes, self.num_attributes)

    def __len__(self) -> int:
        return 0

    def fetch(self, indices: Sequence[int]) -> Batch:
        """Fails: there is nothing to fetch."""
        raise ValueError("there are no data here: name some, by data.name and data.root")
