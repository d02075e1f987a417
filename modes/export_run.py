"""Hand a trained run to the rest of the world: one file that says all of itself, and a folder for diffusers."""

import json
import shutil
from dataclasses import asdict

from models.pretrained import diffusers_write, native
from modes.run import Run
from training import builders


def export_run(run: Run) -> None:
    """Write the averaged weights of a checkpoint, with what they are the weights of."""
    model, checkpoint = run.trained_model()
    description = builders.describe_model(run.config, run.experiment.dataset)
    folder = run.folder.path / "export"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{checkpoint.name}.safetensors"
    native.write(file, description, model)
    file.with_suffix(".json").write_text(json.dumps(asdict(description), indent=2) + "\n")
    print(f'{file}: weights, with their configuration in its header and beside it; models.pretrained.load("{file}")')
    theirs = folder / f"{checkpoint.name}-diffusers"
    shutil.rmtree(theirs, ignore_errors=True)
    try:
        diffusers_write.write(theirs, description, model)
    except ValueError as error:
        print(f"no folder for diffusers: {error}")
        return
    print(f'{theirs}: for diffusers, DDPMPipeline.from_pretrained("{theirs}")')
    if description.options["num_classes"]:
        classes = description.options["num_classes"]
        print(f"its network wants class_labels: 0 .. {classes - 1}, and {classes} for none; DDPMPipeline gives none")
