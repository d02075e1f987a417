"""HTML and SVG as text: elements whose content is escaped unless it is markup already."""

import math
from html import escape
from typing import Any

VOID = ("img", "input", "link", "meta")
"""Elements of HTML that have no end."""


class Markup(str):
    """Text that is markup; all other text is escaped where it enters an element."""

    __slots__ = ()


def join(*parts: Any) -> Markup:
    """Parts one after the other; None is left out."""
    return Markup(
        "".join(part if isinstance(part, Markup) else escape(str(part)) for part in parts if part is not None)
    )


def tag(name: str, /, *content: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: of the element.
        *content: markup, or anything else as escaped text; None is left out.
        **attributes: "_" at the end of a name is dropped, inside it stands for "-"; True is an attribute without a
            value, and None or False is none.
    """
    given = {
        key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value not in (None, False)
    }
    opening = name + "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"' for key, value in given.items()
    )
    return Markup(f"<{opening}>" if name in VOID else f"<{opening}>{join(*content)}</{name}>")


def table(head: list[str], rows: list[list[Any]], caption: str | None = None) -> Markup:
    """A table whose first column heads the rows; it scrolls by itself where it is wider than the page."""
    columns = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head)))
    body = tag(
        "tbody",
        *(tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in rows),
    )
    named = None if caption is None else tag("caption", caption)
    return tag(
        "div",
        tag("table", named, columns, body),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or head[0],
    )


def folded(summary: str, *content: Any) -> Markup:
    """Content that opens on a click."""
    return tag("details", tag("summary", summary), *content)


def note(*content: Any) -> Markup:
    """A line of small print."""
    return tag("p", *content, class_="note")


def number(value: Any) -> str:
    """Four digits of a float, with a real minus sign; else the value as it is, and a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("-", "−", 1) if isinstance(value, int | float) and value < 0 else text


def figure(mean: float, error: float | None) -> str:
    """A mean with its error, to the error's second digit; four digits of one without."""
    if error is None or not error > 0:
        return number(float(mean))
    digits = min(max(0, 1 - math.floor(math.log10(error))), 9)
    return f"{mean:.{digits}f} ± {error:.{digits}f}".replace("-", "−", 1)
