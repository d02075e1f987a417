"""Bits per dimension of a data set, with an error bar: estimate each image, average, tell what the error is made of."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data import Batch, Dataset, Draws, eval_batches, whole_file
from data.order import require_rank
from evaluation.estimators import Estimate, Estimator
from evaluation.parts import Parts, Rows
from sde_lib.arguments import require_at_least


@dataclass(frozen=True)
class LikelihoodReport:
    """Result of an evaluation; all values in bits/dim, an unknown one is None.

    Attributes:
        bits_per_dim: mean over the images. With dequantised levels a bound on the discrete value from above; for
            continuous data the differential entropy in bits.
        std_error: standard error of that mean over the images; it contains the noise of probes and draws.
        images: number of images.
        repeats: independent draws of each image, which ``bits_per_dim`` averages.
        probe_error: the part of the error that is due to the probes, from their spread within each image. The repeats
            of an image share its probes, so they do not lower it.
        repeat_error: the part that is due to dequantisation, from the spread over the repeats.
        importance_weighted: the tighter bound that weighs the repeats by their likelihood (arXiv 1902.00275).
        importance_weighted_error: its standard error over the images.
        nfe: network evaluations for one image and draw; the most of any batch.
        seconds: time spent on the batches, summed over processes, and over the runs of an evaluation that was resumed.
        values: bits/dim of each image, in the order of the split.
        importance_weighted_values: likewise.
    """

    bits_per_dim: float
    std_error: float | None
    images: int
    repeats: int
    probe_error: float | None
    repeat_error: float | None
    importance_weighted: float | None
    importance_weighted_error: float | None
    nfe: int
    seconds: float
    values: list[float]
    importance_weighted_values: list[float] | None

    def save(self, path: Path, **provenance: Any) -> None:
        """Write everything as JSON, with what else tells how it came about; the file is whole or absent."""
        with whole_file(path) as draft:
            draft.write_text(json.dumps({**asdict(self), **provenance}, indent=1))

    def __str__(self) -> str:
        samples = f"{self.images} sample{'s' if self.images > 1 else ''}"
        text = f"{_figure(self.bits_per_dim, self.std_error)} bits/dim on {samples}"
        if self.importance_weighted is not None:
            weighted = _figure(self.importance_weighted, self.importance_weighted_error)
            text += f", importance-weighted over {self.repeats} draws {weighted}"
        parts = {"probes": self.probe_error, "draws": self.repeat_error}
        known = [f"{name} {error:.1e}" for name, error in parts.items() if error is not None]
        return f"{text} (of the error: {', '.join(known)})" if known else text


def evaluate_likelihood(
    estimator: Estimator,
    dataset: Dataset,
    *,
    num_images: int = 0,
    batch_size: int = 256,
    repeats: int = 1,
    weighted: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    parts: Parts | None = None,
    rank: int = 0,
    world_size: int = 1,
    codes: bool = False,
) -> tuple[LikelihoodReport, np.ndarray | None] | None:
    """Mean bits/dim of the first images of a data set.

    All randomness of image k is a function of (seed, k, repeat). So its value depends on no other image (the ODE's, up
    to the tolerance), nor on the batch size, the number of processes, or interruptions.

    Args:
        estimator: of the log-probability of a batch.
        dataset: the split to score.
        num_images: how many; 0 for all.
        batch_size: images at once.
        repeats: independent draws of each image.
        weighted: give the importance-weighted bound of the repeats too (for estimators of a density).
        seed: of all randomness.
        device: where to compute.
        parts: where finished batches are kept and found again; None keeps nothing.
        rank: this process; with several, all need the same ``parts``.
        world_size: number of processes.
        codes: return the latent codes as well.

    Returns:
        the report, and the codes of the first draw (images, *) or None. Of several processes only that of rank 0 waits
        for the others and returns it; these return None when their share is done.

    Raises:
        ValueError: a number that makes no sense, data that are levels without a quantizer, or an estimate that is not
            finite.
    """
    require_at_least(0, num_images=num_images)
    require_at_least(1, repeats=repeats, batch_size=batch_size)
    require_rank(rank, world_size)
    if world_size > 1 and parts is None:
        raise ValueError(f"{world_size} processes share the images through a folder; give parts")
    n = min(num_images or len(dataset), len(dataset))
    done = set() if parts is None else parts.done()
    share = [k for k in range(n) if k // batch_size % world_size == rank]
    mine = [k for k in share if k not in done]
    fresh: list[Rows] = []
    started = len(share) - len(mine)
    if started and rank == 0:
        print(f"{started} of {len(share)} samples were scored by an earlier run; going on from there", flush=True)
    with tqdm(
        total=len(share),
        initial=started,
        desc="likelihood",
        unit="sample",
        disable=None if rank == 0 else True,
        leave=False,
    ) as bar:
        for number, raw in enumerate(eval_batches(dataset, batch_size, indices=mine)):
            indices = mine[number * batch_size : (number + 1) * batch_size]
            _check_continuous(raw, dataset)
            rows = _score(estimator, _to(raw, device), indices, repeats, seed, device, codes)
            if parts is not None:
                parts.save(rows)
            fresh.append(rows)
            bar.update(len(indices))
        if rank:
            return None
        if parts is not None:
            parts.wait(range(n), lambda left: bar.set_postfix_str(f"waiting for {left} samples of other processes"))
    whole = None if parts is None else parts.load()
    rows = whole or {key: np.concatenate([r[key] for r in fresh]) for key in fresh[0]}
    rows = {key: values[rows["index"] < n] for key, values in rows.items()}
    return _report(rows, math.prod(dataset.shape), weighted), rows.get("z")


def _score(
    estimator: Estimator,
    raw: Batch,
    indices: Sequence[int],
    repeats: int,
    seed: int,
    device: torch.device | str,
    codes: bool,
) -> Rows:
    """The rows of a batch: log_prob and variance (B, repeats), nfe and seconds (B,), and z (B, *) where asked for."""
    started = time.monotonic()
    estimates: list[Estimate] = []
    for repeat in range(repeats):
        estimate = estimator(raw, Draws(seed, indices, repeat, device))
        bad = (~estimate.log_prob.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"the log-likelihood of {len(bad)} samples is not finite (the first is {indices[bad[0]]}): check "
                "the score there; an untrained or diverged network gives this"
            )
        estimates.append(estimate)
    unknown = torch.full((len(indices),), math.nan)
    rows = {
        "index": np.array(indices),
        "log_prob": _columns([estimate.log_prob for estimate in estimates]),
        "variance": _columns([unknown if e.variance is None else e.variance for e in estimates]),
        "nfe": np.full(len(indices), max(estimate.nfe for estimate in estimates)),
        "seconds": np.full(len(indices), (time.monotonic() - started) / len(indices)),
    }
    if codes:
        z = estimates[0].z
        if z is None:
            raise ValueError("this estimate has no latent codes; only that of the ODE has")
        rows["z"] = z.cpu().numpy()
    return rows


def _report(rows: Rows, dims: int, weighted: bool) -> LikelihoodReport:
    """Average over repeats, then over images."""
    unit = dims * math.log(2)
    log_prob, variance = rows["log_prob"], rows["variance"]
    images, repeats = log_prob.shape
    values = -log_prob.mean(1) / unit
    mean, error = _mean(values)
    bound = -(np.logaddexp.reduce(log_prob, axis=1) - math.log(repeats)) / unit if weighted and repeats > 1 else None
    bound_mean, bound_error = (None, None) if bound is None else _mean(bound)
    of_probes = None if np.isnan(variance).any() else math.sqrt(variance.mean(1).sum()) / (images * unit)
    of_repeats = math.sqrt((log_prob.var(1, ddof=1) / repeats).sum()) / (images * unit) if repeats > 1 else None
    return LikelihoodReport(
        bits_per_dim=mean,
        std_error=error,
        images=images,
        repeats=repeats,
        probe_error=of_probes,
        repeat_error=of_repeats,
        importance_weighted=bound_mean,
        importance_weighted_error=bound_error,
        nfe=int(rows["nfe"].max()),
        seconds=float(rows["seconds"].sum()),
        values=values.tolist(),
        importance_weighted_values=None if bound is None else bound.tolist(),
    )


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    """Mean, and its standard error where there are two values."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error


def _columns(columns: list[torch.Tensor]) -> np.ndarray:
    return torch.stack([column.double().cpu() for column in columns], 1).numpy()


def _figure(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _to(raw: Batch, device: torch.device | str) -> Batch:
    return Batch(raw.x.to(device), None if raw.y is None else raw.y.to(device))


def _check_continuous(raw: Batch, dataset: Dataset) -> None:
    """Levels that come as continuous data have no density: their likelihood would grow without bound."""
    if dataset.quantizer is None and raw.x.numel() >= 1024 and len(raw.x.unique()) <= 256:
        raise ValueError(
            f"the data set {dataset.name!r} has no quantizer, but its {raw.x.numel()} values are only "
            f"{len(raw.x.unique())} different ones: these are levels, and have no density; give it a Quantizer, by "
            "which they are dequantised"
        )
