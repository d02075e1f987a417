"""Settings that are whole numbers: the steps of a run, and the order of a method."""

from collections.abc import Collection
from typing import Any

from sde_lib.arguments import is_whole

MOST_STEPS = 1_000_000


def whole_steps(steps: Any) -> int:
    """The number of steps, 1 to ``MOST_STEPS``.

    Raises:
        ValueError: it is something else.
    """
    if not is_whole(steps) or not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps is {steps!r}; a sampler needs a whole number of at least 1, at most {MOST_STEPS:,}")
    return int(steps)


def known_order(order: Any, orders: Collection[int], method: str = "this method") -> int:
    """The order, one of those that the method has.

    Raises:
        ValueError: it is something else.
    """
    if not is_whole(order) or order not in orders:
        raise ValueError(f"order is {order!r}; {method} has the orders {', '.join(map(str, orders))}")
    return int(order)
