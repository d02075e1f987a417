"""Compare samples of a trained run with data: Fréchet distance (FID), Inception score, KID, precision, recall."""

import json
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from data import whole_file
from evaluation import (
    Extractor,
    Features,
    Generated,
    Parts,
    Reference,
    as_seen,
    bias_note,
    generate_together,
    installed,
    left_out,
    measure,
)
from models import ScoreModel
from modes.evaluation_results import describe_evaluation, name_drawn, name_evaluation
from modes.evaluation_settings import (
    build_extractor,
    build_reference,
    check_evaluation_settings,
    compared,
    with_sampling,
)
from modes.out_of_memory import passing_memory
from modes.passes import sampling_pass
from modes.run import Run, check_evaluation
from modes.sample import batches
from modes.sampler_settings import unused_settings
from training import locked


def evaluate_run(run: Run) -> None:
    """The mode: each sampler that is asked for, one after the other; several processes share the samples."""
    check_evaluation(run, data=not run.config.evaluation.reference)
    check_evaluation_settings(run)
    runs = compared(run)
    model, path = run.trained_model()
    extractor = build_extractor(run)
    reference = build_reference(run, extractor) if run.rank == 0 else None
    if reference is not None:
        notes = [bias_note(run.config.evaluation.num_images, reference), "" if installed() else left_out()]
        print(*filter(None, notes), sep="\n", end="\n" if any(notes) else "", flush=True)
    for each in runs:
        evaluate(each, model, path, extractor, reference)


def evaluate(run: Run, model: ScoreModel, checkpoint: Path, extractor: Extractor, reference: Reference | None) -> None:
    """Draw, measure, keep the result and print it; a process that is not the first has no reference, and only draws."""
    settings, first = run.config.evaluation, run.config.sampling.seed
    drawn = run.folder.evaluation / name_drawn(run, checkpoint, extractor)
    started, measured, nfe = time.monotonic(), [], 0
    with locked(drawn) if reference is not None else nullcontext():  # the first to end removes what is drawn
        for seed in range(first, first + settings.draws):
            parts = Parts(drawn / f"seed{seed}")
            found = draw_features(with_sampling(run, seed=seed), model, extractor, parts)
            if found is None or reference is None:
                continue
            measured.append(measure(split_features(found.x, extractor, reference), reference, fid=extractor.fid))
            nfe = max(nfe, found.nfe)
        if reference is None:
            return
        result = describe_evaluation(run, checkpoint, extractor, reference, measured, nfe)
        path = run.folder.evaluation / f"{name_evaluation(run, checkpoint, extractor, reference, nfe)}.json"
        with whole_file(path) as draft:
            draft.write_text(json.dumps({**result, "seconds": time.monotonic() - started}, indent=1))
        shutil.rmtree(drawn, ignore_errors=True)
    sampler, steps = result["sampler"], result["steps"]
    if steps is not None:
        sampler += f" in {steps} step{'s' if steps > 1 else ''}"
    for name, found in result["metrics"].items():
        spread = "" if found["sd"] is None else f" ± {found['sd']:.4f}"
        print(f"{name} by {sampler}: {found['mean']:.4f}{spread} ({settings.draws} x {settings.num_images} samples)")
    if unused := unused_settings(run.config, run.default):
        print(f"note: {run.config.sampling.sampler} makes no use of the settings {', '.join(unused)}")
    print(f"{result['provenance']}: {path}", flush=True)


def draw_features(run: Run, model: ScoreModel, extractor: Extractor, parts: Parts) -> Generated | None:
    """Features and logits, side by side, of the samples that the section ``sampling`` asks for.

    They are kept batch by batch in ``parts``, and the samples themselves nowhere. None for a process that has done its
    share, and is not the first.
    """
    draw, quantizer = batches(run, model), run.experiment.dataset.quantizer

    def batch(first: int, size: int) -> Generated:
        samples = draw(first, size)
        found = extractor(as_seen(samples.x, quantizer))
        return Generated(torch.cat([part for part in found if part is not None], 1), samples.nfe)

    sampling = run.config.sampling
    with passing_memory(run, model, sampling_pass(run.config)):
        return generate_together(
            batch,
            sampling.num_images,
            batch_size=sampling.batch_size,
            parts=parts,
            rank=run.rank,
            world_size=run.world_size,
            work=f"samples of seed {sampling.seed}",
        )


def split_features(rows: torch.Tensor, extractor: Extractor, reference: Reference) -> Features:
    """Of ``draw_features``: the features, and the logits that follow those of as many as the reference has."""
    if not extractor.scores:
        return Features(rows)
    return Features(rows[:, : reference.dims], rows[:, reference.dims :])
