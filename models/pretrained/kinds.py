"""Kinds of values that settings have, and one message where a value is of another kind."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What is accepted, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (_whole(value) or isinstance(value, float)) and math.isfinite(value)


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number above 0", lambda value: _whole(value) and value > 0)
POSITIVE = Kind("a number above 0", lambda value: _number(value) and value > 0)
SHARE = Kind("a number in [0, 1)", lambda value: _number(value) and 0 <= value < 1)
TEXT = Kind("text", lambda value: isinstance(value, str))
COUNTS = Kind("whole numbers above 0", lambda value: _all(value, COUNT))
NUMBERS = Kind("numbers above 0", lambda value: _all(value, POSITIVE))


def _all(value: Any, kind: Kind) -> bool:
    return isinstance(value, list | tuple) and all(map(kind.fits, value))


def either(kind: Kind, *others: Any) -> Kind:
    """This kind, or one of these values."""
    listing = "".join(f", or {other!r}" for other in others)
    return Kind(kind.words + listing, lambda value: value in others or kind.fits(value))


def check(settings: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Compare the settings that are there with their kinds.

    Raises:
        ValueError: one is of another; the message names it, and says what is accepted.
    """
    for option, kind in kinds.items():
        if option in settings and not kind.fits(settings[option]):
            raise ValueError(f"{option} is {settings[option]!r}; it must be {kind.words}")
