"""What arguments must be, said once."""

import math
from numbers import Integral
from typing import Any


def require_positive(**values: float) -> None:
    """Raise ValueError unless every named value is a finite positive number."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")


def require_at_least(least: int, **values: float) -> None:
    """Raise ValueError unless every named value is at least so much."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} is {value!r}; it must be at least {least}")


def is_whole(value: Any) -> bool:
    """Whether this is a whole number, Python's or numpy's, and neither a bool nor a float."""
    return isinstance(value, Integral) and not isinstance(value, bool)
