"""Draw samples of a trained run with any sampler: a picture, the samples, and how they came about."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data import whole_file
from evaluation import Generated, Parts, Trajectory, generate, generate_together, picture, save_picture
from models import ScoreModel
from modes.digest import digest
from modes.labels import guided, sample_labels
from modes.out_of_memory import passing_memory
from modes.passes import sampling_pass
from modes.run import Run, check_evaluation
from modes.sampler_settings import build_sampler, sampler_settings, unused_settings
from samplers import Progress
from training.checkpoint import MANIFEST


def sample_run(run: Run) -> None:
    """The mode: load, then ``sample``."""
    check_evaluation(run, data=False)
    model, path = run.trained_model()
    sample(run, model, path, str(path))


def sample(run: Run, model: ScoreModel, checkpoint: Path, source: str) -> None:
    """Write a picture of samples, the samples themselves, and how they came about.

    Args:
        run: what they are of; several processes share the work, and the first one writes.
        model: the averaged weights.
        checkpoint: where these are.
        source: what is told of that.
    """
    config, folder, experiment = run.config, run.folder, run.experiment
    moments, quantizer = config.sampling.trajectory, experiment.dataset.quantizer
    images = 4 if quantizer else config.sampling.batch_size  # points make a picture only together
    trajectory = Trajectory(experiment.sde, moments, images) if moments and run.rank == 0 else None
    parts = Parts(folder.samples / name_parts(run, checkpoint))
    result = draw(run, model, parts, trajectory)
    if result is None:
        return
    own = {"imports": run.own} if run.own else {}
    apart = own | ({} if folder.holds(checkpoint) else {"checkpoint": str(checkpoint.resolve())})
    settings_used, mark = sampler_settings(config, run.default, experiment.sde, **apart)
    name = f"{checkpoint.resolve().name}_{config.sampling.sampler}_{result.nfe}nfe_seed{config.sampling.seed}{mark}"
    for old in (".json", "_trajectory.png", "_trajectory.gif"):
        (folder.samples / f"{name}{old}").unlink(missing_ok=True)  # of other samples
    path = save_picture(picture(result.x, quantizer), folder.samples / f"{name}.png")
    values = result.x if quantizer is None else quantizer.to_uint8(result.x)
    with whole_file(path.with_suffix(".npz")) as draft:
        np.savez_compressed(draft, samples=values.numpy())
    if trajectory is not None:
        trajectory.save(result.x, quantizer, folder.samples / f"{name}_trajectory")
    provenance = {"checkpoint": source, "process": repr(experiment.sde), "nfe": result.nfe, **settings_used, **own}
    with whole_file(path.with_suffix(".json")) as draft:  # the last: where it is, all is there
        draft.write_text(json.dumps(provenance, indent=1))
    parts.remove()
    unused = unused_settings(config, run.default)
    if unused:
        print(f"note: {config.sampling.sampler} makes no use of the settings {', '.join(unused)}")
    print(
        f"{len(result.x)} samples by {config.sampling.sampler}, {result.nfe} network evaluations each: {path}",
        flush=True,
    )


def draw(
    run: Run, model: ScoreModel, parts: Parts, on_step: Callable[[int, Progress], None] | None = None
) -> Generated | None:
    """Samples as the section ``sampling`` asks for; None for a process that has done its share, and is not the first.

    Args:
        run: what they are of.
        model: the averaged weights.
        parts: where finished batches are kept, if there is more than one.
        on_step: sees the steps of each batch that is drawn here, and of the first one in any case.
    """
    with passing_memory(run, model, sampling_pass(run.config)):
        return _draw(run, model, parts, on_step)


def _draw(
    run: Run, model: ScoreModel, parts: Parts, on_step: Callable[[int, Progress], None] | None
) -> Generated | None:
    sampling = run.config.sampling
    several = sampling.num_images > sampling.batch_size
    batch = batches(run, model, on_step, progress=not several)
    if not several:
        return batch(0, sampling.num_images) if run.rank == 0 else None
    return generate_together(
        batch,
        sampling.num_images,
        batch_size=sampling.batch_size,
        parts=parts,
        rank=run.rank,
        world_size=run.world_size,
        first_again=on_step is not None,
    )


def batches(
    run: Run, model: ScoreModel, on_step: Callable[[int, Progress], None] | None = None, *, progress: bool = False
) -> Callable[[int, int], Generated]:
    """(first, size) -> the samples first .. first + size - 1 of those that the section ``sampling`` asks for."""
    sampling, experiment = run.config.sampling, run.experiment
    sampler = build_sampler(run.config, experiment.sde)
    score_fn = guided(run.config, experiment.sde, model)
    labels = sample_labels(run.config, experiment.dataset, sampling.num_images)

    def batch(first: int, size: int) -> Generated:
        return generate(
            sampler,
            experiment.sde,
            score_fn,
            experiment.dataset.shape,
            size,
            batch_size=sampling.batch_size,
            labels=None if labels is None else labels[first : first + size],
            seed=sampling.seed,
            first=first,
            device=experiment.device,
            progress=progress,
            on_step=on_step,
        )

    return batch


def name_parts(run: Run, checkpoint: Path) -> str:
    """A name for the batches, with a digest of all that a sample depends on, to the bit."""
    sections = {key: run.config[key].to_dict() for key in ("data", "sde", "model", "sampling")}
    sections["sampling"].pop("trajectory")
    weights = (checkpoint / MANIFEST).read_text()
    return f".{checkpoint.name}_{run.config.sampling.sampler}_{digest([sections, weights, run.own])}"
