"""Walk between held-out images through their latent codes, and see how well images survive the way there and back."""

from functools import partial

import numpy as np
import torch

from data import Quantizer, eval_batches, whole_file
from evaluation import computing_in, image_grid, interpolate, save_picture
from modes.out_of_memory import passing_memory
from modes.passes import interpolation_pass
from modes.run import Run, check_evaluation
from training import builders


def interpolate_images(run: Run) -> None:
    """A picture with a pair in every row: image, the way between the codes, other image."""
    settings = run.config.interpolation
    check_evaluation(run)
    model, checkpoint = run.trained_model()
    dataset = builders.build_dataset(run.config, settings.split)
    if dataset.quantizer is None:
        raise ValueError(f"{dataset.name!r} has no images to interpolate between")
    count = 2 * settings.pairs
    if len(dataset) < settings.first + count:
        raise ValueError(
            f"{settings.pairs} pairs from image {settings.first} on need {settings.first + count} images; the split "
            f"{settings.split!r} has {len(dataset)}. Lower interpolation.pairs or interpolation.first"
        )
    indices = range(settings.first, settings.first + count)
    (raw,) = eval_batches(dataset, count, indices=indices)
    images = _points(run, dataset.quantizer, raw.x).to(run.experiment.device)
    first, second = (partial(model, y=y) for y in _labels(run, raw.y, settings.moments))
    memory = passing_memory(run, model, interpolation_pass(run.config))
    with computing_in(model, run.config.likelihood.precision), memory:
        result = interpolate(
            run.experiment.sde,
            first,
            images[0::2],
            images[1::2],
            settings.moments,
            decode_score_fn=second,
            rtol=settings.rtol,
            atol=settings.atol,
            max_nfe=run.config.likelihood.max_nfe,
        )
    rows = torch.cat([images[0::2, None], result.path, images[1::2, None]], dim=1)
    extent = f"{settings.first}_{settings.pairs}pairs_{settings.moments}moments"
    name = f"interpolation_{checkpoint.name}_{settings.split}_{extent}"
    grid = image_grid(rows.flatten(0, 1).cpu(), dataset.quantizer, columns=settings.moments + 2)
    target = save_picture(grid, run.folder.samples / f"{name}.png")
    with whole_file(target.with_suffix(".npz")) as draft:
        np.savez_compressed(draft, path=result.path.cpu().numpy(), codes=result.codes.cpu().numpy())
    print(
        f"{settings.pairs} way{'s' if settings.pairs > 1 else ''} between images of the split {settings.split!r}, "
        f"{result.nfe} network evaluations; the ends come back within {result.round_trip:.1e} (root mean square, data "
        f"on [{dataset.quantizer.low:g}, {dataset.quantizer.high:g}]): {target}",
        flush=True,
    )


def _points(run: Run, quantizer: Quantizer, v: torch.Tensor) -> torch.Tensor:
    """Levels as the model knows them: the middle of their bin where it was trained on dequantised ones."""
    return quantizer.place(v, torch.full(v.shape, 0.5)) if run.config.data.dequantize else quantizer.encode(v)


def _labels(run: Run, y: torch.Tensor | None, moments: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Labels for encoding the images, and for decoding the points of the ways: those of the nearer end."""
    if y is None or not run.config.model.conditional:
        return None, None
    first, second = y[0::2].to(run.experiment.device), y[1::2].to(run.experiment.device)
    nearer = torch.linspace(0, 1, moments) < 0.5
    ways = [torch.stack([a if near else b for near in nearer]) for a, b in zip(first, second, strict=True)]
    return torch.cat([first, second]), torch.cat(ways)
