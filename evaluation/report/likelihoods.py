"""Bits per dimension: every estimate with its error, and how they are spread over the images."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.report.charts import histogram
from evaluation.report.markup import Markup, figure, join, note, number, table, tag
from evaluation.report.records import finite_or_none, read_results
from evaluation.report.section import Source

NAMES = {"ode": "probability-flow ODE", "elbo": "bound by the SDE", "ddpm": "bound by DDPM's chain"}
MOST_ROWS = 20


class Scored(NamedTuple):
    """A result of --mode=likelihood."""

    path: Path
    estimate: str
    mean: float
    error: float | None
    values: list[float]
    weighted: float | None
    weighted_error: float | None
    nfe: int
    split: str
    checkpoint: str

    @property
    def images(self) -> int:
        """How many were scored."""
        return len(self.values)


def likelihood_results(source: Source) -> tuple[list[Scored], list[str]]:
    """The results, the newest first, and the files that are damaged."""
    found, damaged = read_results(source.folder / "likelihood")
    good = []
    for path, value in found:
        try:
            good.append(_read(path, value))
        except (KeyError, TypeError, ValueError, OverflowError):
            damaged.append(path.name)
    return good, damaged


def _read(path: Path, value: dict[str, Any]) -> Scored:
    values = [float(v) for v in value["values"]]
    mean = float(value["bits_per_dim"])
    if not values or not all(map(math.isfinite, [mean, *values])):
        raise ValueError(f"{path.name} holds no finite values")
    return Scored(
        path,
        str(value["estimate"]),
        mean,
        finite_or_none(value["std_error"]),
        values,
        finite_or_none(value.get("importance_weighted")),
        finite_or_none(value.get("importance_weighted_error")),
        int(value["nfe"]),
        str(value["data"]["split"]),
        Path(str(value["checkpoint"])).name,
    )


def likelihoods(source: Source) -> Markup | None:
    """A histogram of the newest result of each estimate, all on one scale, and a table of all results."""
    found, damaged = likelihood_results(source)
    if not found:
        if damaged:
            raise ValueError(f"{', '.join(damaged)} damaged")
        return None
    newest = {one.estimate: one for one in reversed(found)}
    shown = [newest[name] for name in sorted(newest, key=lambda name: [*NAMES, name].index(name))]
    span = (min(min(one.values) for one in shown), max(max(one.values) for one in shown))
    charts = [_spread(one, span) for one in shown]
    head = ["estimate", "bits/dim", "weighted", "samples", "split", "NFE", "checkpoint", "file"]
    rows = [_row(one) for one in found[:MOST_ROWS]]
    left = len(found) - len(rows)
    return join(
        note("Mean ± standard error over the samples; lower is better."),
        tag("div", *charts, class_="charts"),
        table(head, rows, "Likelihood results, the newest first"),
        note(f"{left} older results are not listed.") if left else None,
        note(f"Left out as damaged: {', '.join(damaged)}.") if damaged else None,
    )


def _spread(one: Scored, span: tuple[float, float]) -> Markup:
    title = f"{NAMES.get(one.estimate, one.estimate)}: {figure(one.mean, one.error)}"
    mark = ("mean ± standard error", one.mean)
    groups = [(f"{one.images} samples", one.values)]
    return histogram(title, groups, "bits/dim", mark=mark, band=one.error or 0.0, span=span)


def _row(one: Scored) -> list[Any]:
    weighted = number(None) if one.weighted is None else figure(one.weighted, one.weighted_error)
    return [
        one.estimate,
        figure(one.mean, one.error),
        weighted,
        one.images,
        one.split,
        one.nfe,
        one.checkpoint,
        tag("code", one.path.name),
    ]
