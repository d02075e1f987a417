"""Restore, vary or relabel an image with a trained model; the section ``editing`` tells how."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data import Quantizer, make_generator, whole_file
from evaluation import Trajectory, computing_in, generate, image_grid, relabel, save_picture, variations
from models import ScoreModel
from modes.digest import digest
from modes.edit_given import Given, own_label, read_given, wanted_labels
from modes.edit_settings import build_operator, check_editing, restoring
from modes.labels import guided
from modes.out_of_memory import passing_memory
from modes.passes import editing_pass
from modes.run import Run, check_evaluation
from modes.sampler_settings import build_sampler

ASTRAY = 0.1
"""Results that miss what is known by this share of the data's range, beyond its noise, have gone astray."""


class Edited(NamedTuple):
    """Images (n, C, H, W), what they were made from, likewise, and how, in a sentence."""

    x: Tensor
    source: Tensor
    told: str


class Work(NamedTuple):
    """What a task works on: the labels are of the results, and None for a model without conditions."""

    run: Run
    model: ScoreModel
    quantizer: Quantizer
    given: Given
    labels: Tensor | None
    trajectory: Trajectory | None


def edit_image(run: Run) -> None:
    """The mode: a picture with the image, what was known of it, and the results."""
    config, dataset = run.config, run.experiment.dataset
    if dataset.quantizer is None:
        raise ValueError(f"{dataset.name!r} has no images to edit")
    check_editing(config, run.experiment.sde, dataset.shape, run.mask)
    check_evaluation(run, data=False)
    given = read_given(run, dataset, dataset.quantizer)
    labels = wanted_labels(run, dataset, given)
    model, checkpoint = run.trained_model()
    task = config.editing.task
    moments = 0 if task == "relabel" else config.sampling.trajectory
    trajectory = Trajectory(run.experiment.sde, moments) if moments else None
    work = Work(run, model, dataset.quantizer, given, labels, trajectory)
    with passing_memory(run, model, editing_pass(config)):
        edited = TASKS.get(task, _restore)(work)
    _save(work, edited, str(checkpoint))


def _restore(work: Work) -> Edited:
    """Draw from p(x | y) for the measurement y."""
    run, given = work.run, work.given
    config, editing, sde, shape = run.config, run.config.editing, run.experiment.sde, run.experiment.dataset.shape
    operator = build_operator(config, given.anew)
    y = x = given.x.unsqueeze(0)
    if given.intact:
        y = operator.measure(x, editing.noise, make_generator(config.sampling.seed, "measurement"))
    elif editing.task in ("inpainting", "colourisation"):  # elsewhere the image is the measurement
        y = operator.apply(x)
    result = generate(
        build_sampler(config, sde, sampler=editing.sampler),
        sde,
        restoring(config, sde, guided(config, sde, work.model), operator, y),
        shape,
        editing.num_images,
        **_sampling(work),
    )
    square = (operator.apply(result.x) - y).square().sum() / (operator.count(y) * len(result.x))
    seen = functional.interpolate(y.expand(-1, shape[0], -1, -1), size=shape[1:])
    if given.anew is not None:
        seen = torch.where(given.anew, (work.quantizer.low + work.quantizer.high) / 2, seen)
    error = float(square) ** 0.5
    if error > editing.noise + ASTRAY * (work.quantizer.high - work.quantizer.low):
        print("note: the results do not fit what is known of the image; raise sampling.steps, or try another method")
    return Edited(
        result.x,
        torch.cat([x, seen]) if given.intact else seen,
        f"by {editing.method} and {editing.sampler}, {result.nfe} network evaluations each; what is known of "
        f"the image comes back within {error:.1e} (root mean square; noise {editing.noise:g})",
    )


def _vary(work: Work) -> Edited:
    """Noise the image, and take the noise away."""
    run, sde = work.run, work.run.experiment.sde
    start = run.config.sampling.t_start
    if start is None:  # where noise and image weigh the same
        start = float(sde.time_from_log_snr(torch.zeros((), dtype=torch.float64)))
    result = variations(
        build_sampler(run.config, sde, sampler=run.config.editing.sampler, t_start=start),
        sde,
        guided(run.config, sde, work.model),
        work.given.x,
        run.config.editing.num_images,
        **_sampling(work),
    )
    told = f"from time {start:.3g} on by {run.config.editing.sampler}, {result.nfe} network evaluations each"
    return Edited(result.x, work.given.x.unsqueeze(0), told)


def _relabel(work: Work) -> Edited:
    """Encode the image with the label that it has, and decode its code with others."""
    run, device = work.run, work.run.experiment.device
    if work.labels is None:
        raise ValueError("the model knows no labels")
    before = own_label(run, run.experiment.dataset, work.given).expand(work.labels.shape)
    with computing_in(work.model, run.config.likelihood.precision):
        result = relabel(
            run.experiment.sde,
            work.model,
            work.given.x.expand(len(work.labels), *work.given.x.shape).to(device),
            before=before.to(device),
            after=work.labels.to(device),
            decode_score_fn=guided(run.config, run.experiment.sde, work.model),
            rtol=run.config.interpolation.rtol,
            atol=run.config.interpolation.atol,
            max_nfe=run.config.likelihood.max_nfe,
        )
    told = f"through the latent code, {result.nfe} network evaluations"
    return Edited(result.x.cpu(), work.given.x.unsqueeze(0), told)


TASKS: dict[str, Callable[[Work], Edited]] = {"image_to_image": _vary, "relabel": _relabel}
"""Those that do not restore."""


def _sampling(work: Work) -> dict[str, Any]:
    sampling = work.run.config.sampling
    return {
        "batch_size": sampling.batch_size,
        "labels": work.labels,
        "seed": sampling.seed,
        "device": work.run.experiment.device,
        "on_step": work.trajectory,
    }


def _save(work: Work, edited: Edited, checkpoint: str) -> None:
    """A picture, the images as levels, how they came about, and the way there."""
    run, quantizer = work.run, work.quantizer
    sections = {name: run.config[name].to_dict() for name in ("editing", "sampling", "interpolation")}
    provenance = {"checkpoint": checkpoint, "image": run.image, "mask": run.mask, **sections}
    provenance |= {"imports": run.own} if run.own else {}
    path = run.folder.samples / f"edit_{run.config.editing.task}_{work.given.name}_{digest(provenance)}"
    pictures = torch.cat([edited.source, edited.x])
    target = save_picture(image_grid(pictures, quantizer, columns=len(pictures)), path.with_suffix(".png"))
    x, source = (quantizer.to_uint8(part).numpy() for part in (edited.x, edited.source))
    with whole_file(path.with_suffix(".npz")) as draft:
        np.savez_compressed(draft, x=x, source=source)
    if work.trajectory is not None:
        work.trajectory.save(edited.x, quantizer, path.with_name(f"{path.name}_trajectory"))
    with whole_file(path.with_suffix(".json")) as draft:  # the last: where it is, all is there
        draft.write_text(json.dumps(provenance, indent=1))
    images = "image" if len(edited.x) == 1 else "images"
    print(f"{run.config.editing.task}: {len(edited.x)} {images} {edited.told}: {target}", flush=True)
