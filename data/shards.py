"""Images in tar shards, as WebDataset keeps them: for data that are too many for files, or lie on another machine.

A sample is an image, and its label what has the same name up to the first dot: ``00/17.jpg`` with ``00/17.cls`` (a
class, as text) or ``00/17.json`` (with "label": a class, or a list of 0 and 1). What lies where in the shards is found
out once (``data.shard_tables``); then training reads them in the order of ``data.order``.
"""

import mmap
import threading
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.encoded_images import EncodedImages
from data.holdout import choose_split
from data.order import BUFFER, READERS
from data.shard_tables import ShardTable, find_shards, member_name, open_shard, read_tables


class Shards(EncodedImages):
    """The images of tar shards, in the order of the shards.

    Shards on the disk are mapped into memory. Others are streamed when training comes to them and kept in memory while
    it may still need them: about ``BUFFER`` samples and ``READERS`` shards in all.

    Args:
        split: "train", or "test" for the held-out images.
        root: a folder of .tar files; one .tar; or a pattern such as ``faces-{000..012}.tar``, also of URLs. Where it
            holds the word {split}, that is replaced and nothing is held out.
        image_size: side of the square images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: a key of ``data.images.CROPS``.
        holdout: expected share of held-out images, by a hash of their names as in ``ImageFolder``.
        low: model value of level 0.
        high: model value of level 255.
        corrupt: "fail" or "skip"; see ``EncodedImages``.
        cache: folder in which the tables of contents are kept; "" for none: then each start reads all shards.

    Raises:
        FileNotFoundError: there are no shards.
        ValueError: a shard is damaged, labels do not fit together, or an option is not accepted.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        root: str | Path,
        image_size: int,
        channels: int = 3,
        crop: str = "center",
        holdout: float = 0.1,
        low: float = -1.0,
        high: float = 1.0,
        corrupt: str = "fail",
        cache: str | Path = "",
    ) -> None:
        divided = "{split}" in str(root)
        self._urls, tables = read_tables(find_shards(str(root).replace("{split}", split)), cache)
        hashes = np.concatenate([table.hashes for table in tables])
        chosen = choose_split(hashes, "train" if divided else split, 0.0 if divided else holdout, f"{root}")
        shard_of = np.repeat(np.arange(len(tables)), [len(table.hashes) for table in tables])[chosen]
        self._shard_of = shard_of
        self._extents = np.concatenate([table.extents for table in tables])[chosen]
        self.shards = tuple(np.bincount(shard_of)[np.unique(shard_of)].tolist())
        labels, num_classes, num_attributes = _labels(tables, self._urls)
        self._buffers: OrderedDict[int, Future[bytes | mmap.mmap]] = OrderedDict()
        self._most = READERS * (2 + BUFFER // READERS * len(self.shards) // len(chosen))
        self._guard = threading.Lock()
        super().__init__(
            f"shards/{Path(self._urls[0]).stem}",
            len(chosen),
            labels=None if labels is None else labels[torch.from_numpy(chosen)],
            num_classes=num_classes,
            num_attributes=num_attributes,
            image_size=image_size,
            channels=channels,
            crop=crop,
            low=low,
            high=high,
            corrupt=corrupt,
        )

    def content(self, index: int) -> bytes:
        """See ``EncodedImages.content``."""
        start, size = self._extents[index].tolist()
        return self._buffer(int(self._shard_of[index]))[start : start + size]

    def place(self, index: int) -> str:
        """See ``EncodedImages.place``."""
        shard = int(self._shard_of[index])
        return f"{self._urls[shard]}/{member_name(self._buffer(shard), int(self._extents[index][0]))}"

    def _buffer(self, shard: int) -> bytes | mmap.mmap:
        """The bytes of a shard; of those in memory the ones used last are kept."""
        with self._guard:
            missing = shard not in self._buffers
            buffer = self._buffers.setdefault(shard, Future())
            self._buffers.move_to_end(shard)
            while len(self._buffers) > self._most:
                self._buffers.popitem(last=False)
        if missing:  # other threads that want it wait below; those that want another one do not
            try:
                buffer.set_result(open_shard(self._urls[shard]))
            except OSError as error:
                buffer.set_exception(error)
                with self._guard:
                    self._buffers.pop(shard, None)
        return buffer.result()


def _labels(tables: list[ShardTable], urls: list[str]) -> tuple[Tensor | None, int, int]:
    """Labels of all samples, and the number of classes or attributes."""
    widths = {table.labels.shape[1:] for table in tables}
    if len(widths) > 1:
        first = tables[0].labels.shape[1:]
        odd = next(url for url, table in zip(urls, tables, strict=True) if table.labels.shape[1:] != first)
        raise ValueError(f"{odd} has labels of another kind than {urls[0]}; all shards must have one kind, or none")
    labels = torch.from_numpy(np.concatenate([table.labels for table in tables]))
    if labels.ndim == 1:
        return labels, 1 + int(labels.max()), 0
    return (labels, 0, labels.shape[1]) if labels.shape[1] else (None, 0, 0)
