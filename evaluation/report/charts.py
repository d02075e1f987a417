"""Charts as SVG: lines, points with error bars, histograms.

Colours come from the page's style, so they follow its theme.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.report.axes import Axis, label
from evaluation.report.markup import Markup, join, tag

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 8, 38
"""The drawing, and the margins of its axes, in units of the SVG: about pixels, as a chart is about 400 px wide."""


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: in the legend.
        x: of its points.
        y: likewise.
        error: half the length of the bar at each point; None for none.
        color: number of its colour in the style.
        faint: a thin pale line, that another one sums up.
        marked: the points are marked.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None] | None = None
    color: int = 1
    faint: bool = False
    marked: bool = False


def line_chart(
    title: str, series: Sequence[Series], x_label: str, y_label: str = "", *, log_x: bool = False, log_y: bool = False
) -> Markup:
    """A figure with lines; what is not above 0 is left out of a logarithmic axis."""
    drawn = [_positive(one, log_x, log_y) for one in series]
    drawn = [one for one in drawn if len(one.x)]
    if not drawn:
        raise ValueError(f"nothing to draw for {title!r}")
    ends = [
        end
        for one in drawn
        for y, e in _with_errors(one)
        for end in (y - (e or 0), y + (e or 0))
        if end > 0 or not log_y
    ]
    x = Axis.around((v for one in drawn for v in one.x), LEFT, WIDTH - RIGHT, log=log_x, pad=0.02)
    y = Axis.around(ends, HEIGHT - BOTTOM, TOP, log=log_y, pad=0.06)
    told = f"{title}. " + " ".join(f"{s.name}: from {label(s.y[0])} to {label(s.y[-1])}." for s in drawn if not s.faint)
    lines = join(*(_line(one, x, y) for one in drawn))
    return _figure(title, told, _frame(x, y, x_label, y_label), lines, [(s.name, s.color, s.faint) for s in drawn])


def histogram(
    title: str,
    groups: Sequence[tuple[str, Sequence[float]]],
    x_label: str,
    *,
    mark: tuple[str, float] | None = None,
    band: float = 0.0,
    span: tuple[float, float] | None = None,
) -> Markup:
    """A figure with the shares of values in equal bins.

    Args:
        title: of the figure.
        groups: (name, values), drawn over each other on the same bins.
        x_label: what the values are.
        mark: a name and the place of a line across.
        band: half the width of a band around the mark.
        span: ends of the bins; None for those of the values.
    """
    values = np.concatenate([np.asarray(v, dtype=float) for _, v in groups])
    low, high = (values.min(), values.max()) if span is None else span
    edges = np.linspace(low, high if high > low else low + 1, bins_of(max(len(v) for _, v in groups)) + 1)
    shares = [np.histogram(v, edges)[0] / len(v) for _, v in groups]
    reach = [*edges[[0, -1]], *([mark[1] - band, mark[1] + band] if mark else [])]
    x = Axis.around(reach, LEFT, WIDTH - RIGHT, pad=0.02)
    y = Axis(0.0, max(share.max() for share in shares) * 1.06, HEIGHT - BOTTOM, TOP)
    shapes = join(*(_steps(edges, share, x, y, color) for color, share in enumerate(shares, 1)))
    legend = [(name, color, False) for color, (name, _) in enumerate(groups, 1)]
    if mark is not None:
        place = x(mark[1])
        width = {"x": _px(x(mark[1] - band)), "width": _px(2 * (place - x(mark[1] - band)))}
        shade = tag("rect", class_="band", y=TOP, height=HEIGHT - TOP - BOTTOM, **width) if band else None
        shapes = join(shade, shapes, tag("path", d=f"M{_px(place)} {TOP}V{HEIGHT - BOTTOM}", class_="mark"))
        legend.append((mark[0], 0, False))
    told = f"{title}. " + " ".join(f"{name}: {len(v)} values, mean {label(float(np.mean(v)))}." for name, v in groups)
    return _figure(title, told, _frame(x, y, x_label, "share"), shapes, legend)


def bins_of(count: int) -> int:
    """A number of bins for so many values."""
    return int(np.clip(np.sqrt(2 * count), 6, 40))


def _positive(one: Series, log_x: bool, log_y: bool) -> Series:
    """The points that the axes can show."""
    kept = [
        i for i, (x, y) in enumerate(zip(one.x, one.y, strict=True)) if (x > 0 or not log_x) and (y > 0 or not log_y)
    ]
    error = None if one.error is None else [one.error[i] for i in kept]
    return Series(one.name, [one.x[i] for i in kept], [one.y[i] for i in kept], error, one.color, one.faint, one.marked)


def _with_errors(one: Series) -> Iterable[tuple[float, float | None]]:
    return zip(one.y, one.error if one.error is not None else [None] * len(one.y), strict=True)


def _px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _line(one: Series, x: Axis, y: Axis) -> Markup:
    pixels = [(_px(x(u)), _px(y(v))) for u, v in zip(one.x, one.y, strict=True)]
    parts = [tag("polyline", points=" ".join(",".join(pixel) for pixel in pixels))]
    for (value, error), place, (left, top) in zip(_with_errors(one), one.x, pixels, strict=True):
        if error:
            low = y(max(value - error, y.low)) if y.log else y(value - error)
            parts.append(tag("path", d=f"M{left} {_px(low)}V{_px(y(value + error))}"))
        if one.marked or len(pixels) == 1:
            bar = f" ± {error:.3g}" if error else ""
            parts.append(tag("circle", tag("title", f"{one.name}: {place:g}, {value:.4g}{bar}"), cx=left, cy=top, r=3))
    return tag("g", *parts, class_=f"series c{one.color}{' faint' if one.faint else ''}")


def _steps(edges: np.ndarray, share: np.ndarray, x: Axis, y: Axis, color: int) -> Markup:
    path = f"M{_px(x(edges[0]))} {_px(y(0))}"
    path += "".join(f"V{_px(y(s))}H{_px(x(right))}" for s, right in zip(share, edges[1:], strict=True))
    return tag("path", d=f"{path}V{_px(y(0))}Z", class_=f"bars c{color}")


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Markup:
    """Grid, ticks and labels."""
    parts = []
    for value in y.ticks():
        row = _px(y(value))
        parts.append(tag("path", d=f"M{LEFT} {row}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(tag("text", label(value), x=LEFT - 6, y=row, dy="0.32em", text_anchor="end"))
    for value in x.ticks():
        column = _px(x(value))
        parts.append(tag("path", d=f"M{column} {HEIGHT - BOTTOM}v4", class_="axis"))
        parts.append(tag("text", label(value), x=column, y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    middle = (HEIGHT - BOTTOM + TOP) / 2
    turned = f"rotate(-90 11 {middle:g})"
    return join(
        *parts,
        tag("path", d=f"M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}", class_="axis"),
        tag("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, text_anchor="middle", class_="label"),
        tag("text", y_label, x=11, y=middle, transform=turned, text_anchor="middle", class_="label")
        if y_label
        else None,
    )


def _figure(title: str, told: str, frame: Markup, content: Markup, legend: list[tuple[str, int, bool]]) -> Markup:
    drawing = tag("svg", frame, content, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=told)
    keys = [tag("li", tag("i", class_=f"key c{c}{' faint' if faint else ''}"), name) for name, c, faint in legend]
    return tag(
        "figure",
        tag("figcaption", title),
        tag("ul", *keys, class_="legend") if len(keys) > 1 else None,
        drawing,
        class_="chart",
    )
