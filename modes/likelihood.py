"""Score held-out data with a trained run: bits/dim by the ODE, by the SDE's bound, by DDPM's bound."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from data import (
    Dataset,
    Dequantized,
    Dequantizer,
    Quantizer,
    TruncatedNormalDequantizer,
    UniformDequantizer,
    whole_file,
)
from evaluation import (
    BoundEstimator,
    Estimator,
    LikelihoodReport,
    ODEEstimator,
    Parts,
    computing_in,
    evaluate_likelihood,
)
from models import ScoreModel
from modes.dequantizer_settings import trained_dequantizer
from modes.labels import told_labels
from modes.likelihood_results import describe_result, name_result
from modes.likelihood_settings import (
    ESTIMATES,
    ddpm_chain,
    dequantization,
    likelihood_options,
    warn_of_dequantization,
    warn_of_fewer,
)
from modes.out_of_memory import passing_memory
from modes.passes import likelihood_pass
from modes.run import Run, check_evaluation
from sde_lib import METHODS
from training import builders, locked


def score_run(run: Run) -> None:
    """The mode: load, then ``score``."""
    check_evaluation(run, scores=True)
    model, path = run.trained_model()
    score(run, model, path)


def score(run: Run, model: ScoreModel, checkpoint: Path) -> None:
    """Bits/dim of held-out data (given its labels, for a conditional model), by each estimate asked for."""
    settings = run.config.likelihood
    dataset = builders.build_dataset(run.config, settings.split)
    if run.rank == 0:
        warn_of_fewer("likelihood.num_images", settings.num_images, dataset, settings.split)
        if dataset.quantizer is not None:
            warn_of_dequantization(run.config)
    with computing_in(model, settings.precision), passing_memory(run, model, likelihood_pass(run.config)):
        for name in ESTIMATES[settings.estimate]:
            if name == "ddpm" and settings.estimate == "all":
                try:
                    ddpm_chain(run.config, run.experiment.sde)
                except (TypeError, ValueError) as error:
                    if run.rank == 0:
                        print(f"no DDPM bound: {error}")
                    continue
            score_by(name, run, model, dataset, checkpoint)


def score_by(name: str, run: Run, model: ScoreModel, dataset: Dataset, checkpoint: Path) -> None:
    """Evaluate one estimate, keep its results, and print them; a second call at the same time is refused."""
    label, kept = name_result(name, run, checkpoint)
    path = run.folder.likelihood / f"{label}.json"
    parts = Parts(run.folder.likelihood / kept)
    with locked(parts.folder) if run.rank == 0 else nullcontext():  # the first to end removes the parts
        result = _evaluate(name, run, model, dataset, checkpoint, parts)
        if result is None:
            return
        report, codes, provenance = result
        if codes is not None:
            with whole_file(path.with_suffix(".npz")) as draft:
                np.savez_compressed(draft, codes=codes)
        report.save(path, **provenance)
        parts.remove()
    print(
        f"{name}: {report} of the split {run.config.likelihood.split!r}, {report.nfe} network evaluations, "
        f"{report.seconds:.0f} s: {path}",
        flush=True,
    )
    if "check" in provenance:
        check = provenance["check"]
        print(
            f"check: {check['how']} ({check['nfe']} evaluations) the mean of the first {check['images']} moves by "
            f"{check['mean_change']:+.1e} bits/dim, and none of them by more than {check['largest_change']:.1e}",
            flush=True,
        )


def _evaluate(
    name: str, run: Run, model: ScoreModel, dataset: Dataset, checkpoint: Path, parts: Parts
) -> tuple[LikelihoodReport, np.ndarray | None, dict[str, Any]] | None:
    """The report, latent codes where they are asked for, and all else to be known; None but in the first process."""
    settings = run.config.likelihood
    provenance = describe_result(name, run, dataset, checkpoint)  # a training may remove the checkpoint meanwhile
    shared = {"batch_size": settings.batch_size, "seed": settings.seed, "device": run.experiment.device}
    result = evaluate_likelihood(
        build_estimator(name, run, model, dataset),
        dataset,
        num_images=settings.num_images,
        repeats=settings.repeats,
        weighted=name == "ode" and dataset.quantizer is not None,
        parts=parts,
        rank=run.rank,
        world_size=run.world_size,
        codes=settings.codes and name == "ode",
        **shared,
    )
    if result is None:
        return None
    report, codes = result
    if settings.check and name == "ode":
        finer, how = _finer(settings)
        tighter = build_estimator(name, run, model, dataset, **finer)
        again = evaluate_likelihood(
            tighter, dataset, num_images=min(settings.check, report.images), repeats=settings.repeats, **shared
        )
        if again is not None:
            provenance["check"] = {"how": how, **_compare(report.values, again[0].values, again[0].nfe)}
    return report, codes, provenance


def build_estimator(name: str, run: Run, model: ScoreModel, dataset: Dataset, **changes: float) -> Estimator:
    """The estimator of a name for this model and data set."""
    config, sde = run.config, run.experiment.sde
    dequantizer = build_dequantizer(run, dataset.quantizer)
    if name == "ode":
        settings = likelihood_options(config) | changes
        own = {key: settings.pop(key) for key in ("divergence", "probes", "noise")}
        return ODEEstimator(sde, told_labels(config, model), dequantizer, **own, options=settings)
    points = isinstance(dequantizer, TruncatedNormalDequantizer)  # the noise of the process at t_min is the bound's own
    chain = ddpm_chain(config, sde) if name == "ddpm" else None
    samples = min(config.likelihood.samples, chain - 1) if chain else config.likelihood.samples
    eps_fn = told_labels(config, model.eps)
    return BoundEstimator(sde, eps_fn, dataset.quantizer, None if points else dequantizer, samples, chain)


def build_dequantizer(run: Run, quantizer: Quantizer | None) -> Dequantizer | None:
    """By ``likelihood.dequantization``; None for continuous data, which have no levels."""
    if quantizer is None:
        return None
    kind = dequantization(run.config)
    if kind == "uniform":
        return UniformDequantizer(quantizer)
    if kind == "truncated_normal":
        sde = run.experiment.sde
        alpha, sigma = sde.marginal(torch.tensor(sde.t_min, dtype=torch.float64))
        return TruncatedNormalDequantizer(quantizer, float(alpha), float(sigma))
    network = trained_dequantizer(run.config, run.experiment.dataset, run.folder, run.experiment.device)
    return partial(_by_network, network)


@torch.no_grad()
def _by_network(network: torch.nn.Module, v: torch.Tensor, u: torch.Tensor) -> Dequantized:
    return Dequantized(*network(v, u))


def _finer(settings: ConfigDict) -> tuple[dict[str, float], str]:
    """Settings of the solver that err less, and what they are in words."""
    if METHODS[settings.method] == "fixed":
        return {"steps": 2 * settings.steps}, "with twice the steps"
    return {"rtol": settings.rtol / 10, "atol": settings.atol / 10}, "at a tenth of the tolerance"


def _compare(values: list[float], tighter: list[float], nfe: int) -> dict[str, Any]:
    """How far the values of the first images move when the tolerance is tightened."""
    change = np.array(tighter) - np.array(values[: len(tighter)])
    return {
        "images": len(tighter),
        "nfe": nfe,
        "mean_change": float(change.mean()),
        "largest_change": float(np.abs(change).max()),
    }
