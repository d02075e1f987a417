"""What a likelihood is called on the disk, and what must be known to cite it."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data import Dataset
from modes.digest import digest
from modes.likelihood_settings import ddpm_chain, dequantization
from modes.provenance import device_name, versions
from modes.run import Run
from training.checkpoint import MANIFEST

APART = ("batch_size", "num_images", "check", "estimate")
"""Settings on which the value of an image does not depend."""


def describe_result(name: str, run: Run, dataset: Dataset, checkpoint: Path) -> dict[str, Any]:
    """Everything beside the figures: model, data, how levels became densities, settings, software and machine."""
    config, device = run.config, run.experiment.device
    quantizer = dataset.quantizer
    kind = None if quantizer is None else dequantization(config)
    described = {
        "estimate": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": str(checkpoint),
        "weights": digest((checkpoint / MANIFEST).read_text(), 16),
        "process": repr(run.experiment.sde),
        "model": config.model.to_dict(),
        "data": {
            **config.data.to_dict(),
            "split": config.likelihood.split,
            "shape": dataset.shape,
            "quantizer": None if quantizer is None else repr(quantizer),
        },
        "dequantization": kind,
        "settings": {**config.likelihood.to_dict(), "estimate": name},
        "versions": versions("torchdiffeq", own=run.own),
        "device": device_name(device),
    }
    if name == "ddpm":
        described["ddpm_steps"] = ddpm_chain(config, run.experiment.sde)
    if kind == "variational" and (newest := run.folder.dequantizer.latest()) is not None:
        described["dequantizer"] = {"checkpoint": str(newest), "weights": digest((newest / MANIFEST).read_text(), 16)}
    return described


def name_result(name: str, run: Run, checkpoint: Path) -> tuple[str, str]:
    """A name for the result, and one for its parts, with a digest of all that the value of an image depends on."""
    config, settings = run.config, run.config.likelihood.to_dict()
    chain = {"ddpm_steps": config.training.ddpm_steps} if name == "ddpm" else {}
    in_name = ("split", "seed", "codes", *APART)
    changed = {k: v for k, v in settings.items() if k not in in_name and v != run.default.likelihood[k]}
    changed |= {k: v for k, v in chain.items() if v != run.default.training[k]}
    other_data = [c for c in run.folder.changes(config.to_dict(), fixed=()) if re.match(r"data\.(?!workers|cache)", c)]
    changed |= {"data": other_data} if other_data else {}
    changed |= {"imports": run.own} if run.own else {}
    if not run.folder.holds(checkpoint):
        changed |= {"checkpoint": str(checkpoint.resolve())}
    part = {"num_images": settings["num_images"]} if settings["num_images"] else {}  # 0: the whole split
    label = f"{checkpoint.name}_{settings['split']}_{name}_seed{settings['seed']}"
    own = {k: v for k, v in settings.items() if k not in APART}
    weights = [(checkpoint / MANIFEST).read_text()]
    if dequantization(config) == "variational" and (newest := run.folder.dequantizer.latest()) is not None:
        weights.append((newest / MANIFEST).read_text())
    sections = {key: config[key].to_dict() for key in ("data", "sde", "model", "dequantizer")}
    whole = digest({"likelihood": own, "weights": weights, "imports": run.own, **chain, **sections})
    return label + (f"_{digest(changed | part)}" if changed | part else ""), f".{label}_{whole}"
