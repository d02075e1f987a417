"""Hand a trained run to the rest of the world: one file that says all of itself, and a folder for diffusers."""

import json
from dataclasses import asdict

from data import whole_file
from models.pretrained import diffusers_write, native
from modes.run import Run
from training import builders


def export_run(run: Run) -> None:
    """Write the averaged weights of a checkpoint, with what they are the weights of."""
    model, checkpoint = run.trained_model()
    description = builders.describe_model(run.config, run.experiment.dataset)
    folder = run.folder.path / "export"
    file = folder / f"{checkpoint.name}.safetensors"
    with whole_file(file) as draft:
        native.write(draft, description, model)
    with whole_file(file.with_suffix(".json")) as draft:
        draft.write_text(json.dumps(asdict(description), indent=2) + "\n")
    print(f'{file}: weights, with their configuration in its header and beside it; models.pretrained.load("{file}")')
    theirs = folder / f"{checkpoint.name}-diffusers"
    try:
        with whole_file(theirs) as draft:
            diffusers_write.write(draft, description, model)
    except ValueError as error:
        print(f"no folder for diffusers: {error}")
        return
    print(f'{theirs}: for diffusers, DDPMPipeline.from_pretrained("{theirs}")')
    if description.options["num_classes"]:
        classes = description.options["num_classes"]
        print(f"its network wants class_labels: 0 .. {classes - 1}, and {classes} for none; DDPMPipeline gives none")
