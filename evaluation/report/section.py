"""A section of the report: what makes it, and what is said in its place where there is nothing to make it of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data import Dataset
from evaluation.report.markup import Markup, tag
from evaluation.report.records import Column, read_metrics


@dataclass(frozen=True)
class Source:
    """What a report is made of.

    Attributes:
        folder: the run folder.
        config: its stored configuration, as nested plain values.
        default: the documented default, likewise.
        command: mode -> the command that runs it on this folder.
        dataset: split -> the data of the run; called only where they are needed.
        training_images: how many of them samples are compared with, at most; 0 for none.
    """

    folder: Path
    config: Mapping[str, Any]
    default: Mapping[str, Any]
    command: Callable[[str], str]
    dataset: Callable[[str], Dataset]
    training_images: int = 10_000

    @cached_property
    def metrics(self) -> dict[str, Column]:
        """Name -> what training recorded; read once, since it may be long."""
        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def of_points(self) -> bool:
        """Whether the run is of vectors, which only the network ``mlp`` is for, and has no images to show."""
        return dict(self.config.get("model", {})).get("name") == "mlp"


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: its anchor.
        title: its heading.
        make: from the source to its content; None where there is nothing to show.
        mode: the mode that makes what it shows.
        remedy: how, in a sentence that follows the command.
        images: whether it can only be of images.
    """

    name: str
    title: str
    make: Callable[[Source], Markup | None]
    mode: str
    remedy: str = ""
    images: bool = False

    def build(self, source: Source) -> Markup:
        """The section, or a line that tells how to come by it; no fault of the files goes further than that."""
        try:
            content = self.make(source)
            missing = "Nothing here yet"
        except Exception as error:  # files may hold anything; the rest of the page is as good without them
            content, fault = None, str(error).strip().split("\n")[0][:200]
            missing = f"Its files cannot be used ({type(error).__name__}: {fault})"
        if content is None and self.images and source.of_points:
            content = tag("p", "Of images only; this run is of points.", class_="absent")
        elif content is None:
            command = tag("code", source.command(self.mode))
            content = tag(
                "p", f"{missing}. To make it: ", command, f" {self.remedy}." if self.remedy else ".", class_="absent"
            )
        heading = tag("h2", self.title, id=f"{self.name}-title")
        return tag("section", heading, content, id=self.name, aria_labelledby=f"{self.name}-title")
