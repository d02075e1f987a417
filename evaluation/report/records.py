"""What the files of a run say: its metrics as columns, and results that are JSON. Damaged parts are left out."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MOST_POINTS = 400
"""Of a curve in the page."""


class Column(NamedTuple):
    """Values of one name in the metrics, at ascending steps; all finite."""

    steps: np.ndarray
    values: np.ndarray


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; lines that a crash cut off, or that are none, are left out."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def read_metrics(path: Path) -> dict[str, Column]:
    """Name -> its values."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for line in read_lines(path):
        step = line.get("step")
        if finite(step) is not None and isinstance(step, int):
            for name, value in line.items():
                if name != "step" and (known := finite(value)) is not None:
                    rows.setdefault(name, []).append((step, known))
    return {name: Column(*np.array(sorted(pairs)).T) for name, pairs in rows.items()}


def read_results(folder: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """The JSON objects in a folder, the newest first, and the names of files that hold none."""
    found, damaged = [], []
    for path in sorted(folder.glob("[!.]*.json"), key=lambda path: (path.stat().st_mtime, path.name), reverse=True):
        try:
            value = json.loads(path.read_text())
        except (ValueError, OSError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append((path, value))
        else:
            damaged.append(path.name)
    return found, damaged


def finite(value: Any) -> float | None:
    """A number, if it is one that can be drawn; else None."""
    try:
        known = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return known if math.isfinite(known) else None


def finite_or_none(value: Any) -> float | None:
    """The same of what may be missing.

    Raises:
        ValueError: it is there, and no number.
    """
    if value is not None and not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return finite(value)


def decimate(column: Column, most: int = MOST_POINTS) -> Column:
    """At most so many points of a curve that look like all of them: the lowest and the highest of each stretch."""
    steps, values = column
    if len(steps) <= most:
        return column
    stretches = np.array_split(np.arange(len(steps)), most // 2)
    kept = np.unique([part[k] for part in stretches for k in (values[part].argmin(), values[part].argmax())])
    return Column(steps[kept], values[kept])


def smooth(column: Column, share: float = 0.05) -> Column:
    """Running mean over a share of the points, centred; near the ends over those that there are."""
    steps, values = column
    half = max(1, round(share * len(values) / 2))
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=float)])
    ends = np.minimum(np.arange(len(values)) + half + 1, len(values))
    starts = np.maximum(np.arange(len(values)) - half, 0)
    return Column(steps, (sums[ends] - sums[starts]) / (ends - starts))
