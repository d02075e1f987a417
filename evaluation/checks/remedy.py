"""The value of a setting that a check would be content with."""

import inspect
import math
from collections.abc import Callable
from typing import Any

from sde_lib import SDE

LARGEST = 2**20
"""Times the present value, up to which one is looked for."""


def round_up(value: float) -> float:
    """To two digits, upwards."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.3g}")


def sufficient(sde: SDE, knob: str, good: Callable[[SDE], bool]) -> float | None:
    """The least value of a setting, of two digits, with which the process is good, all else being as it is.

    Args:
        sde: the process, whose arguments are attributes of the same names.
        knob: the setting.
        good: whether a process is; once it is so, larger values must not change that.

    Returns:
        The value; None where there is none up to ``LARGEST`` times the present one, or no such setting.
    """
    settings: dict[str, Any] = {name: getattr(sde, name, None) for name in inspect.signature(type(sde)).parameters}
    if settings.get(knob) is None:
        return None

    def passes(value: float) -> bool:
        try:
            return good(type(sde)(**settings | {knob: value}))
        except ValueError:  # no such process, or no chain of it
            return False

    low = high = float(settings[knob])
    while not passes(high):
        low, high = high, 2 * high
        if high > LARGEST * settings[knob]:
            return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    rounded = round_up(high)
    return rounded if passes(rounded) else high
