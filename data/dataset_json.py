"""Labels in a file ``dataset.json`` beside the images, as StyleGAN's and EDM's data tools write it.

    {"labels": [["00000/img00000000.png", 6], ["00000/img00000001.png", 9], ...]}

A label is a class (a whole number), or a vector of attributes (0 and 1); null in place of the list says unlabelled.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

FILE = "dataset.json"


class Table(NamedTuple):
    """Labels of the images of a data set, and how many classes or attributes there are in all of it."""

    labels: Tensor | None
    num_classes: int
    num_attributes: int


def read_labels(content: bytes, names: Sequence[str], place: str) -> Table:
    """Labels of these images.

    Args:
        content: of the file.
        names: of the images, relative to the folder or archive that holds the file.
        place: of the file, for messages.

    Raises:
        ValueError: the file is no such table, it lacks an image, or its labels are of several kinds.
    """
    rows = _rows(content, place)
    if rows is None:
        return Table(None, 0, 0)
    lacking = [name for name in names if name not in rows]
    if lacking:
        raise ValueError(
            f"{place} has no label for {len(lacking)} of {len(names)} images, the first is {lacking[0]}; complete it, "
            "or remove it for data without labels"
        )
    kinds = {len(row) if isinstance(row, list) else None for row in rows.values()}
    if len(kinds) > 1:
        raise ValueError(f"{place} mixes labels of several kinds or lengths; all must be of one")
    (length,) = kinds
    wrong = next((name for name, row in rows.items() if not _fits(row)), None)
    if wrong is not None:
        raise ValueError(
            f"{place}: the label of {wrong} is {rows[wrong]!r}; it must be a class (a whole number from 0 on), or a "
            "list of 0 and 1"
        )
    labels = torch.tensor([rows[name] for name in names], dtype=torch.float64).long()
    if length is None:
        return Table(labels, 1 + max(rows.values()), 0)
    return Table(labels.reshape(len(names), length), 0, length)


def _rows(content: bytes, place: str) -> dict[str, Any] | None:
    """Image -> label as it stands there; None where the data are unlabelled."""
    try:
        labels = json.loads(content)["labels"]
        return None if labels is None else {str(name).replace("\\", "/"): row for name, row in labels} or None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        expected = '{"labels": [["IMAGE", 0], ...]}'
        raise ValueError(
            f"{place} is no table of labels: expected {expected} ({type(error).__name__}: {error})"
        ) from error


def _fits(row: Any) -> bool:
    if isinstance(row, list):
        return len(row) > 0 and all(type(value) in (int, float) and value in (0, 1) for value in row)
    return type(row) is int and 0 <= row < 2**31
