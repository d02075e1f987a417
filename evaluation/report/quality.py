"""Quality of samples against network evaluations: each metric of each sampler, of files that can be compared."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.report.charts import Series, line_chart
from evaluation.report.markup import Markup, figure, folded, join, note, number, table, tag
from evaluation.report.records import finite_or_none, read_results
from evaluation.report.section import Source

TITLES = {
    "fid": ("FID", "lower"),
    "frechet_distance": ("Fréchet distance", "lower"),
    "kid": ("KID", "lower"),
    "kernel_distance": ("Kernel distance", "lower"),
    "inception_score": ("Inception score", "higher"),
    "classifier_score": ("Classifier score", "higher"),
    "precision": ("Precision", "higher"),
    "recall": ("Recall", "higher"),
}
"""Metric -> its name, and which way is better."""
MOST_CHARTS, MOST_ROWS = 8, 40


class Judged(NamedTuple):
    """A result of --mode=evaluate; ``group`` is what two results must share to be compared, in words."""

    path: Path
    metrics: dict[str, tuple[float, float | None]]
    group: tuple[str, ...]
    sampler: str
    steps: int | None
    nfe: int
    of: tuple[int, str, int, str]
    provenance: str


def quality_results(source: Source) -> tuple[list[Judged], list[str]]:
    """The results, the newest first, and the files that are damaged."""
    found, damaged = read_results(source.folder / "evaluation")
    good = []
    for path, value in found:
        try:
            good.append(_read(path, value))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            damaged.append(path.name)
    return good, damaged


def _read(path: Path, value: dict[str, Any]) -> Judged:
    metrics = {name: (float(m["mean"]), finite_or_none(m.get("sd"))) for name, m in value["metrics"].items()}
    if not metrics or not all(math.isfinite(mean) for mean, _ in metrics.values()):
        raise ValueError(f"{path.name} holds no finite metrics")
    extractor, split, images, step = (value[key] for key in ("extractor", "split", "images", "checkpoint_step"))
    of = (int(images), str(split), int(step), str(extractor))
    nfe, steps = int(value["nfe"]), value.get("steps")
    if nfe < 1:
        raise ValueError(f"{path.name} tells of {nfe} network evaluations")
    sampler, guidance = str(value["sampler"]), _sampling(value).get("guidance", 1)
    sampler += "" if guidance == 1 else f", guidance {guidance:g}"
    return Judged(path, metrics, _group(value), sampler, steps, nfe, of, str(value.get("provenance", "")))


def _sampling(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return value.get("settings", {}).get("sampling", {})


def _group(value: Mapping[str, Any]) -> tuple[str, ...]:
    """The extractor, the images on both sides, the weights, and the code of the user's own."""
    reference, labels = value.get("reference", {}), _sampling(value).get("labels")
    seen = reference.get("pixels", reference.get("sha256", ""))
    words = (
        value["extractor"],
        value.get("extractor_weights") and f"its weights {value['extractor_weights']}",
        f"{value['images']} samples against {value['split']}",
        seen and f"{reference.get('images', 'moments')} of it ({seen})",
        labels and f"labels {labels}",
        f"step {value['checkpoint_step']}",
        value.get("weights") and f"weights {value['weights'][:8]}",
        (own := value.get("versions", {}).get("imports")) and f"imports {own}",
    )
    return tuple(str(word) for word in words if word)


def best(found: list[Judged]) -> tuple[str, float, str] | None:
    """The best value of the first known metric among the newest comparable results: its name, it, and how."""
    if not found:
        return None
    group = [one for one in found if one.group == found[0].group]
    metric = next((name for name in (*TITLES, *found[0].metrics) if name in found[0].metrics), None)
    group = [one for one in group if metric in one.metrics]
    if metric is None:
        return None
    title, better = TITLES.get(metric, (metric, "lower"))
    sign = 1 if better == "lower" else -1
    top = min(group, key=lambda one: sign * one.metrics[metric][0])
    return title, top.metrics[metric][0], f"{top.sampler}, {top.nfe} evaluations"


def quality(source: Source) -> Markup | None:
    """A chart for each metric and group of comparable results, and a table of all."""
    found, damaged = quality_results(source)
    if not found:
        if damaged:
            raise ValueError(f"{', '.join(damaged)} damaged")
        return None
    groups = list(dict.fromkeys(one.group for one in found))
    charts = [
        _chart(metric, [one for one in found if one.group == group and metric in one.metrics], _apart(group, groups))
        for group in groups
        for metric in sorted({name for one in found if one.group == group for name in one.metrics}, key=_place)
    ]
    names = sorted({name for one in found for name in one.metrics}, key=_place)
    head = [
        "sampler",
        "steps",
        "NFE",
        *(TITLES.get(name, (name,))[0] for name in names),
        "samples",
        "split",
        "checkpoint",
        "extractor",
    ]
    rows = [_row(one, names) for one in found[:MOST_ROWS]]
    cited = [tag("li", tag("code", one.path.name), " ", one.provenance) for one in found[:MOST_ROWS]]
    left = len(found) - len(rows)
    return join(
        note("Bars are the standard deviation over independent draws."),
        tag("div", *charts[:MOST_CHARTS], class_="charts"),
        table(head, rows, "Quality of samples, the newest first"),
        folded("To cite them", tag("ul", *cited)),
        note(f"{left} older results are not listed.") if left else None,
        note(f"Left out as damaged: {', '.join(damaged)}.") if damaged else None,
    )


def _place(metric: str) -> tuple[int, str]:
    return ([*TITLES].index(metric) if metric in TITLES else len(TITLES), metric)


def _apart(group: tuple[str, ...], groups: list[tuple[str, ...]]) -> str:
    """What of a group not all of them share."""
    return "".join(f", {word}" for word in group if not all(word in other for other in groups))


def _chart(metric: str, results: list[Judged], of: str) -> Markup:
    title, better = TITLES.get(metric, (metric, ""))
    lines = []
    for color, sampler in enumerate(sorted({one.sampler for one in results}), 1):
        own = sorted((one for one in results if one.sampler == sampler), key=lambda one: one.nfe)
        values, errors = zip(*(one.metrics[metric] for one in own), strict=True)
        lines.append(Series(sampler, [one.nfe for one in own], values, errors, color=1 + (color - 1) % 6, marked=True))
    means = [value for line in lines for value in line.y]
    wide = min(means) > 0 and max(means) > 8 * min(means)
    about = f" ({better} is better)" if better else ""
    return line_chart(f"{title}{about}{of}", lines, "network evaluations", log_x=True, log_y=wide)


def _row(one: Judged, names: list[str]) -> list[Any]:
    cells = []
    for name in names:
        mean, sd = one.metrics.get(name, (None, None))
        cells.append(number(None) if mean is None else figure(mean, sd))
    return [one.sampler, number(one.steps), one.nfe, *cells, *one.of]
