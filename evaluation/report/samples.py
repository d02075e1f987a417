"""Samples, how they came about, and what else was drawn."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.report.images import frames, picture
from evaluation.report.markup import Markup, join, note, number, table, tag
from evaluation.report.records import read_results
from evaluation.report.section import Source

OTHERS = {"interpolation_": "Ways between images", "edit_": "Edited"}
"""Beginnings of the names of pictures that are no samples."""
PATH = "_trajectory"
SETTINGS = {
    "sampler": "sampler",
    "nfe": "NFE",
    "steps": "steps",
    "grid": "grid",
    "guidance": "guidance",
    "seed": "seed",
}
EARLIER = 6


def newest(source: Source, pattern: str, begins: str = "") -> list[Path]:
    """Files of ``samples/``, the newest first; of samples only, or of what else ``begins`` tells."""
    files = [path for path in (source.folder / "samples").glob(pattern) if path.is_file()]
    found = [path for path in files if not path.stem.endswith(PATH)]
    kept = [path for path in found if path.name.startswith(begins or tuple(OTHERS)) == bool(begins)]
    return sorted(kept, key=lambda path: (path.stat().st_mtime, path.name), reverse=True)


def samples(source: Source) -> Markup | None:
    """The newest samples, and those that training drew before."""
    pictures = newest(source, "*.png")
    if not pictures:
        return None
    path, *before = pictures
    told = dict(read_results(source.folder / "samples")[0]).get(path.with_suffix(".json"), {})
    name = f"samples/{path.name}"
    grid = tag("figure", picture(path, f"Grid of samples, {name}"))
    grid = tag("div", grid, table(["file", name], _settings(told), "How they were drawn"), class_="beside")
    earlier = sorted((one for one in before if one.stem.startswith("step_")), key=lambda one: one.name)
    if not earlier:
        return grid
    places = np.unique(np.linspace(0, len(earlier) - 1, EARLIER).round().astype(int))
    thumbs = [_thumb(earlier[k]) for k in places]
    return join(grid, tag("h3", "While it trained"), tag("div", *thumbs, class_="thumbs"))


def _thumb(path: Path) -> Markup:
    step = int(path.stem.removeprefix("step_")) if path.stem[5:].isdecimal() else path.stem
    return tag("figure", picture(path, f"Samples at step {step}", longest=320), tag("figcaption", f"step {step}"))


def _settings(told: Mapping[str, Any]) -> list[list[str]]:
    rows = [[word, number(told[key])] for key, word in SETTINGS.items() if told.get(key) is not None]
    return rows + ([["checkpoint", Path(str(told["checkpoint"])).name]] if "checkpoint" in told else [])


def film(source: Source) -> Markup | None:
    """The way from noise to the newest samples: frames with a slider, and a strip on paper."""
    found = [path for path in newest(source, "*.png") if path.with_name(f"{path.stem}{PATH}.gif").exists()]
    if not found:
        return None
    path = found[0].with_name(f"{found[0].stem}{PATH}.gif")
    shots = frames(path)
    last = len(shots) - 1
    names = ["the samples" if k == last else f"moment {k + 1} of {last}" for k in range(last + 1)]
    items = [
        tag(
            "li",
            tag(
                "figure", picture(shot, f"The way from noise to samples: {name}", longest=640), tag("figcaption", name)
            ),
        )
        for shot, name in zip(shots, names, strict=True)
    ]
    slider = tag("input", type="range", min=0, max=last, value=last, aria_label="Moment between noise and samples")
    controls = tag("div", tag("button", "Play", type="button"), slider, class_="controls", hidden=True)
    return join(
        note(
            "Left: x_t, scaled to a variance near 1. Right: what the network makes of it, E[x_0 given x_t]. ",
            tag("code", f"samples/{path.name}"),
        ),
        tag("div", controls, tag("ol", *items), class_="film", data_film=True),
    )


def others(source: Source) -> Markup | None:
    """The newest interpolation and the newest edited image."""
    shown = []
    for begins, title in OTHERS.items():
        for path in newest(source, "*.png", begins)[:1]:
            image = picture(path, f"{title}: {path.stem}")
            shown.append(tag("figure", image, tag("figcaption", f"{title}. ", tag("code", f"samples/{path.name}"))))
    return join(*shown) if shown else None


def sample_array(source: Source) -> tuple[Path, np.ndarray] | None:
    """The newest array of samples, as picture values (N, C, H, W); None where there is none of images."""
    for path in newest(source, "*.npz"):
        try:
            with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
                images = file["samples"] if "samples" in file else np.zeros(0)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"samples/{path.name} is damaged") from error
        if images.dtype == np.uint8 and images.ndim == 4 and images.size:
            return path, images
    return None


def enlarged(images: list[np.ndarray], side: int = 64) -> Image.Image:
    """Pictures (C, H, W) beside each other, small ones with whole pixels made large."""
    arrays = [np.repeat(image, 3, axis=0) if len(image) == 1 else image[:3] for image in images]
    row = np.concatenate(arrays, axis=2).transpose(1, 2, 0)
    scale = max(1, side // max(images[0].shape[1:]))
    return Image.fromarray(np.ascontiguousarray(row.repeat(scale, axis=0).repeat(scale, axis=1)))
