"""Draw samples of a trained run with any sampler: a picture, the samples, and how they came about."""

import json
from collections.abc import Callable

import numpy as np

from data import whole_file
from evaluation import Generated, Trajectory, generate, picture, save_picture
from models import ScoreModel
from modes.labels import guided, sample_labels
from modes.run import Run, check_evaluation
from modes.sampler_settings import build_sampler, sampler_settings, unused_settings
from samplers import Progress


def sample_run(run: Run) -> None:
    """The mode: load, then ``sample``."""
    check_evaluation(run, data=False)
    model, path = run.trained_model()
    sample(run, model, str(path))


def sample(run: Run, model: ScoreModel, source: str) -> None:
    """Write a picture of samples, the samples themselves, and how they came about."""
    config, folder, experiment = run.config, run.folder, run.experiment
    moments, quantizer = config.sampling.trajectory, experiment.dataset.quantizer
    images = 4 if quantizer else config.sampling.batch_size  # points make a picture only together
    trajectory = Trajectory(experiment.sde, moments, images) if moments else None
    result = draw(run, model, trajectory)
    settings_used, mark = sampler_settings(config, run.default, experiment.sde)
    name = f"{config.sampling.sampler}_{result.nfe}nfe_seed{config.sampling.seed}{mark}"
    for old in (".json", "_trajectory.png", "_trajectory.gif"):
        (folder.samples / f"{name}{old}").unlink(missing_ok=True)  # of other samples
    path = save_picture(picture(result.x, quantizer), folder.samples / f"{name}.png")
    values = result.x if quantizer is None else quantizer.to_uint8(result.x)
    with whole_file(path.with_suffix(".npz")) as draft:
        np.savez_compressed(draft, samples=values.numpy())
    if trajectory is not None:
        trajectory.save(result.x, quantizer, folder.samples / f"{name}_trajectory")
    provenance = {"checkpoint": source, "process": repr(experiment.sde), "nfe": result.nfe, **settings_used}
    with whole_file(path.with_suffix(".json")) as draft:  # the last: where it is, all is there
        draft.write_text(json.dumps(provenance, indent=1))
    unused = unused_settings(config, run.default)
    if unused:
        print(f"note: {config.sampling.sampler} makes no use of the settings {', '.join(unused)}")
    print(
        f"{len(result.x)} samples by {config.sampling.sampler}, {result.nfe} network evaluations each: {path}",
        flush=True,
    )


def draw(run: Run, model: ScoreModel, on_step: Callable[[int, Progress], None] | None = None) -> Generated:
    """Samples as the section ``sampling`` asks for."""
    sampling, experiment = run.config.sampling, run.experiment
    return generate(
        build_sampler(run.config, experiment.sde),
        experiment.sde,
        guided(run.config, experiment.sde, model),
        experiment.dataset.shape,
        sampling.num_images,
        batch_size=sampling.batch_size,
        labels=sample_labels(run.config, experiment.dataset, sampling.num_images),
        seed=sampling.seed,
        device=experiment.device,
        on_step=on_step,
    )
