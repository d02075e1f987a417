"""The tables that come with CelebA: its official partition and its 40 attributes, as .txt or as Kaggle's .csv."""

import numpy as np


def read_partition(text: str, place: str) -> dict[str, int]:
    """File name -> 0 (train), 1 (valid) or 2 (test).

    Raises:
        ValueError: the text is no such table.
    """
    rows = (line.replace(",", " ").split() for line in text.splitlines())
    try:
        codes = {name: int(code) for name, code in filter(None, rows) if name != "image_id"}
    except ValueError:
        codes = {}
    if not codes or not set(codes.values()) <= {0, 1, 2}:
        raise ValueError(f"{place} is no CelebA partition table: expected lines like '000001.jpg 0', codes 0, 1, 2")
    return codes


def read_attributes(text: str, place: str) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    """Return attribute names, image names, and the table (images, attributes) as int64 0 or 1.

    Raises:
        ValueError: the text is no such table.
    """
    lines = [line for line in text.replace(",", " ").splitlines() if line.strip()]
    if lines and lines[0].strip().isdigit():  # the .txt starts with the number of images
        del lines[0]
    if len(lines) < 2:
        raise ValueError(f"{place} is no CelebA attribute table: it has no rows")
    names = tuple(name for name in lines[0].split() if name != "image_id")
    cells = [line.split() for line in lines[1:]]
    odd = next((row for row in cells if len(row) != len(names) + 1), None)
    if odd is not None:
        raise ValueError(
            f"{place} is no CelebA attribute table: {len(names)} attributes are named, but the row of {odd[0]} has "
            f"{len(odd) - 1} values"
        )
    table = np.array([row[1:] for row in cells])
    if not np.isin(table, ("1", "-1", "0")).all():
        raise ValueError(f"{place} is no CelebA attribute table: its values must be 1 and -1")
    return names, [row[0] for row in cells], (table == "1").astype(np.int64)
