"""Axes of a chart: data to pixels, linear or logarithmic, and ticks at round numbers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

MOST_TICKS = 6


@dataclass(frozen=True)
class Axis:
    """The map of [low, high] to pixels [start, end].

        linear       start + (end - start) (v - low) / (high - low)
        logarithmic  the same of log v

    Args:
        low: smallest value shown.
        high: largest.
        start: pixel of ``low``.
        end: pixel of ``high``; below ``start`` for an axis that points up.
        log: logarithmic; then ``low`` is above 0.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def around(
        cls, values: Iterable[float], start: float, end: float, *, log: bool = False, pad: float = 0.0
    ) -> "Axis":
        """An axis that holds the values, with a share ``pad`` of its length free at each end."""
        known = [math.log(v) if log else v for v in values]
        low, high = min(known), max(known)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            margin = 0.5 * (abs(low) or 1.0) if not log else 0.5
            low, high = low - margin, high + margin
        low, high = low - pad * (high - low), high + pad * (high - low)
        return cls(math.exp(low), math.exp(high), start, end, True) if log else cls(low, high, start, end)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        f = math.log if self.log else float
        return self.start + (self.end - self.start) * (f(value) - f(self.low)) / (f(self.high) - f(self.low))

    def ticks(self) -> list[float]:
        """Round numbers on the axis, ``MOST_TICKS`` at most."""
        return self._log_ticks() if self.log else self._linear_ticks()

    def _linear_ticks(self) -> list[float]:
        raw = (self.high - self.low) / MOST_TICKS
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) if step > 1e-9 else k * step for k in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            found = [
                f * 10.0**k for k in exponents for f in factors if self.low * 0.999 <= f * 10.0**k <= self.high * 1.001
            ]
            if len(found) >= 3:
                return found[:: -(-len(found) // MOST_TICKS)]
        return self._linear_ticks()


def label(value: float) -> str:
    """A tick's text: short, with k and M for thousands and millions."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and 10 * value % size == 0):
            return f"{value / size:g}{unit}".replace("-", "−")
    text = f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}".replace("e-0", "e-")
    return text.replace("-", "−")
