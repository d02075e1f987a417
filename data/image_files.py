"""A list of image files as a data set."""

from collections.abc import Sequence
from typing import Any

from data.encoded_images import EncodedImages
from data.files import Files


class ImageFiles(EncodedImages):
    """Images by name.

    Args:
        name: of the data set.
        files: where the images lie.
        names: of the images in ``files``; their order is the order of the samples.
        **options: of ``EncodedImages``.
    """

    def __init__(self, name: str, files: Files, names: Sequence[str], **options: Any) -> None:
        super().__init__(name, len(names), **options)
        self.files = files
        self.names = list(names)

    def content(self, index: int) -> bytes:
        """See ``EncodedImages.content``."""
        return self.files.read(self.names[index])

    def place(self, index: int) -> str:
        """See ``EncodedImages.place``."""
        return self.files.place(self.names[index])
