"""Training as curves: loss, learning rate, gradient, speed; and the loss in each range of the log-SNR."""

import re
from collections.abc import Mapping

import numpy as np

from evaluation.report.charts import Series, line_chart
from evaluation.report.markup import Markup, folded, join, note, number, table, tag
from evaluation.report.records import Column, decimate, smooth
from evaluation.report.section import Source

BIN = re.compile(r"heldout_loss/log_snr_(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)")
OTHERS = {
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm, before clipping",
    "images_per_second": "Samples per second",
}
WIDE = 8.0
"""Ratio of the largest to the smallest value above which an axis is logarithmic."""
SHOWN = 4
"""Moments of training whose loss against the log-SNR is drawn."""


def curves(source: Source) -> Markup | None:
    """Loss and the rest against the step."""
    metrics = source.metrics
    if not metrics:
        return None
    charts = [_losses(metrics)] if "loss" in metrics else []
    charts += [_curve(title, name, metrics[name]) for name, title in OTHERS.items() if name in metrics]
    last = {name: column for name, column in metrics.items() if not BIN.fullmatch(name)}
    rows = [[name, f"{int(column.steps[-1])}", number(float(column.values[-1]))] for name, column in last.items()]
    numbers = folded("Last values", table(["name", "step", "value"], rows, "Last value of each record"))
    return join(tag("div", *charts, class_="charts"), numbers)


def _losses(metrics: Mapping[str, Column]) -> Markup:
    loss = metrics["loss"]
    lines = [
        _series("training", decimate(loss), faint=True),
        _series("training, running mean", decimate(smooth(loss))),
    ]
    if "heldout_loss" in metrics:
        lines.append(_series("held-out", decimate(metrics["heldout_loss"]), color=2, marked=True))
    return line_chart("Loss", lines, "step", log_y=_wide(*lines))


def _curve(title: str, name: str, column: Column) -> Markup:
    if name == "learning_rate":
        return line_chart(title, [_series(title, decimate(column))], "step")
    lines = [_series("recorded", decimate(column), faint=True), _series("running mean", decimate(smooth(column)))]
    return line_chart(title, lines, "step", log_y=_wide(*lines))


def _series(name: str, column: Column, *, color: int = 1, faint: bool = False, marked: bool = False) -> Series:
    marked = marked and len(column.steps) <= 30
    return Series(name, column.steps.tolist(), column.values.tolist(), None, color, faint, marked)


def _wide(*lines: Series) -> bool:
    values = np.concatenate([line.y for line in lines])
    return bool(values.min() > 0 and values.max() > WIDE * values.min())


def loss_by_log_snr(source: Source) -> Markup | None:
    """The denoising error of held-out data in each range of the log-SNR, at some moments of training."""
    metrics = source.metrics
    bins = {tuple(map(float, match.groups())): metrics[name] for name in metrics if (match := BIN.fullmatch(name))}
    if not bins:
        return None
    ranges = sorted(bins)
    centres = [(low + high) / 2 for low, high in ranges]
    steps = sorted(set.intersection(*(set(column.steps.tolist()) for column in bins.values())))
    if not steps:
        return None
    at = {r: dict(zip(bins[r].steps.tolist(), bins[r].values.tolist(), strict=True)) for r in ranges}
    chosen = [steps[k] for k in np.unique(np.linspace(0, len(steps) - 1, SHOWN).round().astype(int))]
    lines = [
        Series(f"step {step:.0f}", centres, [at[r][step] for r in ranges], color=len(chosen) - k, marked=True)
        for k, step in enumerate(chosen)
    ]
    head = ["log-SNR", *(f"step {step:.0f}" for step in chosen)]
    rows = [[f"{number(r[0])} to {number(r[1])}", *(number(at[r][step]) for step in chosen)] for r in ranges]
    return join(
        note(
            "Mean of (eps_hat − eps)² on held-out data, by the averaged weights. 1 is a network that says nothing; "
            "much noise is on the left."
        ),
        tag(
            "div",
            line_chart("Denoising error", lines, "log-SNR", log_y=_wide(*lines)),
            table(head, rows, "Denoising error by log-SNR"),
            class_="charts",
        ),
    )
