"""The page: one file that needs nothing else, and asks nobody for anything."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from data import whole_file
from evaluation.report import curves, likelihoods, memorised, quality, samples, settings
from evaluation.report.markup import Markup, join, tag
from evaluation.report.overview import contents, overview
from evaluation.report.section import Section, Source

NAME = "report.html"
SECTIONS: Sequence[Section] = (
    Section("training", "Training", curves.curves, "train"),
    Section("log-snr", "Loss by log-SNR", curves.loss_by_log_snr, "train", "with training.heldout_every above 0"),
    Section("samples", "Samples", samples.samples, "sample"),
    Section("trajectory", "From noise to samples", samples.film, "sample", "with sampling.trajectory above 0"),
    Section("likelihood", "Likelihood", likelihoods.likelihoods, "likelihood"),
    Section("quality", "Quality by network evaluations", quality.quality, "evaluate"),
    Section(
        "memorisation",
        "Nearest training images",
        memorised.memorised,
        "sample",
        "with the training data at hand",
        images=True,
    ),
    Section(
        "pictures",
        "Interpolation and editing",
        samples.others,
        "interpolate",
        "or --mode=edit --image=PICTURE",
        images=True,
    ),
    Section("configuration", "Configuration", settings.configuration, "train"),
    Section("commands", "Commands", settings.commands, "train"),
)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a browser may do with the page: show what is in it, and nothing else."""


def write_report(source: Source) -> Path:
    """Make the page anew, in the run folder; returns its path.

    Raises:
        OSError: it cannot be written.
    """
    path = source.folder / NAME
    text = render(source)
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="replace")  # names of files may be no Unicode
    return path


def render(source: Source, sections: Sequence[Section] = SECTIONS) -> Markup:
    """The page as HTML."""
    title = f"{source.folder.resolve().name}: report"
    here = Path(__file__)
    style, script = (here.with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    again = tag("p", f"Made {made} UTC. To make it anew: ", tag("code", source.command("report")))
    body = tag(
        "body",
        tag("a", "To the content", href=f"#{sections[0].name}", class_="skip"),
        overview(source),
        contents([(section.name, section.title) for section in sections]),
        tag("main", *(section.build(source) for section in sections)),
        tag("footer", again),
        tag("script", Markup(script)),
    )
    return join(Markup("<!doctype html>\n"), tag("html", head, body, lang="en"))
