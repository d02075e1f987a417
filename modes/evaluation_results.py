"""What an evaluation is called on the disk, and what must be known to cite it."""

import re
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation import Extractor, Reference
from modes.digest import digest
from modes.provenance import device_name, versions
from modes.run import Run
from modes.sampler_settings import build_sampler, sampler_settings
from training.checkpoint import MANIFEST, step_of


def summary(draws: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Metric -> mean, standard deviation over the draws (None of one), and the draws."""
    found = {}
    for name in draws[0]:
        values = [draw[name] for draw in draws]
        sd = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values), "sd": sd, "draws": values}
    return found


def name_evaluation(run: Run, checkpoint: Path, extractor: Extractor, reference: Reference, nfe: int) -> str:
    """Of the result: what is asked for most in words, and a hash of all else that differs from the default."""
    config, settings = run.config, run.config.evaluation
    _, mark = sampler_settings(config, run.default, run.experiment.sde)
    apart = ("best", "compare", "split", "num_images", "draws", "weights", "reference", "extractor")
    changed: dict[str, Any] = {
        key: value for key, value in settings.items() if key not in apart and value != run.default.evaluation[key]
    }
    if reference.features is None:
        changed["reference"] = reference.about
    other_data = [c for c in run.folder.changes(config.to_dict(), fixed=()) if re.match(r"data\.(?!workers|cache)", c)]
    changed |= {"data": other_data} if other_data else {}
    changed |= {"imports": run.own} if run.own else {}
    if checkpoint.resolve().parent != run.folder.checkpoints.folder.resolve():
        changed |= {"checkpoint": str(checkpoint.resolve())}  # of another folder, whose steps have the same names
    kind = re.sub(r"\W+", "-", extractor.name)
    label = f"{checkpoint.name}_{settings.split}_{kind}_{config.sampling.sampler}_{nfe}nfe{mark}"
    label += f"_{settings.draws}x{settings.num_images}_seed{config.sampling.seed}"
    return label + (f"_{digest(changed)}" if changed else "")


def name_drawn(run: Run, checkpoint: Path, extractor: Extractor) -> str:
    """Of the folder of features that are drawn, with a digest of all that they depend on, to the bit."""
    sections = {key: run.config[key].to_dict() for key in ("data", "sde", "model", "sampling")}
    sections["sampling"].pop("trajectory")
    weights = [(checkpoint / MANIFEST).read_text(), extractor.name, extractor.weights]
    return f".{checkpoint.name}_{run.config.sampling.sampler}_{digest([sections, weights, run.own])}"


def describe_evaluation(
    run: Run,
    checkpoint: Path,
    extractor: Extractor,
    reference: Reference,
    draws: Sequence[Mapping[str, float]],
    nfe: int,
) -> dict[str, Any]:
    """The result as it is stored."""
    config, settings, sde = run.config, run.config.evaluation, run.experiment.sde
    first = config.sampling.seed
    described = {
        "metrics": summary(draws),
        "extractor": extractor.name,
        "images": settings.num_images,
        "draws": settings.draws,
        "seeds": list(range(first, first + settings.draws)),
        "split": settings.split,
        "sampler": config.sampling.sampler,
        "steps": build_sampler(config, sde).step_count(sde),
        "nfe": nfe,
        "checkpoint_step": step_of(checkpoint),
        "checkpoint": str(checkpoint),
        "weights": digest((checkpoint / MANIFEST).read_text(), 16),
        "process": repr(sde),
        "reference": reference.about,
        "extractor_weights": extractor.weights,
        "versions": versions("torch-fidelity", own=run.own),
        "device": device_name(run.experiment.device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            "sampling": sampler_settings(config, run.default, sde)[0],
            "evaluation": settings.to_dict(),
            "data": config.data.to_dict(),
        },
    }
    return {**described, "provenance": provenance(described, str(extractor))}


def provenance(described: Mapping[str, Any], extractor: str) -> str:
    """One line to cite."""
    sampling, seeds = described["settings"]["sampling"], ", ".join(map(str, described["seeds"]))
    steps = "" if described["steps"] is None else f"{described['steps']} steps, "
    end = "denoised at the end" if sampling["denoise"] else "not denoised at the end"
    guidance = "" if sampling["guidance"] == 1 else f", guidance {sampling['guidance']:g}"
    labels = f", labels {sampling['labels']}" if sampling["labels"] else ""
    drawn = f"{described['draws']} draws" if described["draws"] > 1 else "1 draw"
    form = "" if len(described["reference"].get("shape", ())) == 1 else " as uint8"  # points are compared as they are
    software = ", ".join(f"{name} {version}" for name, version in described["versions"].items() if version)
    return (
        f"extractor {extractor}; compared with {in_words(described['reference'])}; "
        f"{drawn} of {described['images']} samples{form}, seed{'s' if described['draws'] > 1 else ''} {seeds}; "
        f"{described['sampler']}, {steps}{described['nfe']} network evaluations{labels}{guidance}, {end}; averaged "
        f"weights of step {described['checkpoint_step']} ({described['weights'][:8]}); {software}"
    )


def in_words(about: Mapping[str, Any]) -> str:
    """What samples are compared with, in words."""
    if "pixels" not in about:
        return f"moments of the file {about['file']} (sha256 {about['sha256']}), whose images are not known here"
    shape = "x".join(map(str, about["shape"]))
    points = len(about["shape"]) == 1
    shape, seen = (f"{shape} values each", "values") if points else (shape, "pixels")
    crop = f", crop {about['crop']}" if "crop" in about else ""
    return f"{about['images']} samples of {about['data']} {about['split']}, {shape}{crop} ({seen} {about['pixels']})"
