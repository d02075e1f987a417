"""One lookup for every registry of the project: plain dicts, and one message when a name is unknown."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

V = TypeVar("V")


def lookup(table: Mapping[str, V], name: str, kind: str) -> V:
    """Return ``table[name]``.

    Args:
        table: name -> entry.
        name: the key that was asked for.
        kind: what the table holds ("sampler", "model", ...), for the message.

    Raises:
        ValueError: the name is unknown; the message repeats it, lists all names and suggests the nearest.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    near = get_close_matches(str(name), table, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(map(repr, sorted(table)))}{hint}")
