"""The head of the page: what the run is, and its figures in brief."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from evaluation.report.likelihoods import likelihood_results
from evaluation.report.markup import Markup, figure, join, number, tag
from evaluation.report.quality import best, quality_results
from evaluation.report.section import Source


def overview(source: Source) -> Markup:
    """Title, a sentence, and tiles of the newest figures; what is not known has none."""
    return tag(
        "header",
        tag("p", "Report of a run", class_="eyebrow"),
        tag("h1", source.folder.resolve().name),
        tag("p", _sentence(source.config), class_="lede"),
        tag("dl", *_tiles(source), class_="tiles"),
    )


def _sentence(config: Mapping[str, Any]) -> str:
    data, sde, model, training = (config.get(name, {}) for name in ("data", "sde", "model", "training"))
    return (
        f"{model.get('name')} on {data.get('name')}, process {sde.get('name')}, prediction {model.get('prediction')}, "
        f"batches of {training.get('batch_size')}."
    )


def _tiles(source: Source) -> list[Markup]:
    found: list[tuple[str, str, str]] = []
    for figures in (_trained, _scored, _judged):
        with suppress(Exception):  # files may hold anything; the section of these figures tells what is wrong
            found += figures(source)
    return [tag("div", tag("dt", name), tag("dd", value, tag("small", about))) for name, value, about in found]


def _trained(source: Source) -> list[tuple[str, str, str]]:
    metrics = source.metrics
    training = source.config.get("training", {})
    asked = f"of {training['steps']:,}" if training.get("steps") else f"of {training.get('epochs')} epochs"
    tiles = []
    if "loss" in metrics:
        steps, values = metrics["loss"]
        saved = [int(path.name[5:]) for path in source.folder.glob("checkpoints/step_*") if path.name[5:].isdecimal()]
        done = max(int(steps[-1]), *saved, 0)  # a run may stop between two records
        tiles += [("Steps", f"{done:,}", asked), ("Loss", number(float(values[-1])), "training, last record")]
    if "heldout_loss" in metrics:
        steps, values = metrics["heldout_loss"]
        tiles.append(("Held-out loss", number(float(values[-1])), f"at step {int(steps[-1]):,}"))
    return tiles


def _scored(source: Source) -> list[tuple[str, str, str]]:
    found = [one for one in likelihood_results(source)[0] if one.estimate == "ode"]
    if not found:
        return []
    mean, _, error = figure(found[0].mean, found[0].error).partition(" ± ")
    about = f"{found[0].images} samples of {found[0].split}, ODE"
    return [("Bits/dim", mean, f"± {error}, {about}" if error else about)]


def _judged(source: Source) -> list[tuple[str, str, str]]:
    top = best(quality_results(source)[0])
    return [] if top is None else [(top[0], number(top[1]), top[2])]


def contents(sections: list[tuple[str, str]]) -> Markup:
    """Links to the sections."""
    links = join(*(tag("li", tag("a", title, href=f"#{name}")) for name, title in sections))
    return tag("nav", tag("ul", links), aria_label="Sections")
