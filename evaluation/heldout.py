"""The training loss on held-out data, and the denoising error in each range of the log-SNR.

With x_t = alpha x0 + sigma eps of a held-out sample, d its dimensions and lambda the log-SNR, bin b from l_b to l_{b+1}
and the loss (arXiv 2011.13456, equation 7) have the values

    bin b:  1 / (l_{b+1} - l_b)  integral over the bin of  E|eps_hat - eps|^2 / d  d lambda
    loss:   integral of  p(t) w(t) E|eps_hat - eps|^2 / d  dt

The bins cut [lambda(T), lambda(t_min)] into equal widths. Both are estimated from the same evaluations: lambda is
stratified, one draw of each sample in every stratum, and the loss weighs it by p(t) w(t) relative to the density of t
under which lambda is uniform. A network that always says 0 has 1 in every bin; a perfect one has what is left of the
data in the noise, which for N(m, v I) is v alpha^2 / (v alpha^2 + sigma^2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data import Batch, Dataset, Draws
from data.order import require_rank
from evaluation.estimators import ModelFn
from sde_lib import SDE, TIME_LAWS, WEIGHTINGS, dsm_loss, lookup
from sde_lib.arguments import require_at_least


@dataclass(frozen=True)
class HeldOutLoss:
    """Result; all errors are standard errors over the samples, None where there is one sample only.

    Attributes:
        loss: the training loss, see above.
        std_error: of the loss.
        bins: mean denoising error in each bin, from much noise to little.
        errors: of the bins.
        edges: log-SNR at the ends of the bins, ascending, one more than there are bins.
        values: the loss of each sample, whose mean is ``loss``.
    """

    loss: float
    std_error: float | None
    bins: tuple[float, ...]
    errors: tuple[float | None, ...]
    edges: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def images(self) -> int:
        """Number of samples."""
        return len(self.values)

    def above(self, other: "HeldOutLoss") -> tuple[float, float | None]:
        """By how much this loss is above that of another network, and the standard error of the difference.

        Both are of the same samples, times and noise, so what these have in common cancels: the error is much less than
        those of the two losses.
        """
        differences = torch.tensor(self.values, dtype=torch.float64) - torch.tensor(other.values, dtype=torch.float64)
        return float(differences.mean()), _std_error(differences) if self.images > 1 else None

    def __str__(self) -> str:
        error = "" if self.std_error is None else f" ± {self.std_error:.4f}"
        ends = zip(self.edges[:-1], self.edges[1:], strict=True)
        ranges = [f"{low:.1f}..{high:.1f} {value:.4f}" for (low, high), value in zip(ends, self.bins, strict=True)]
        return f"held-out loss {self.loss:.4f}{error} on {self.images} samples; by log-SNR: {', '.join(ranges)}"

    def scalars(self) -> dict[str, float]:
        """Name -> value, for a record: ``heldout_loss``, and ``heldout_loss/log_snr_-10.0..-7.0`` and so on."""
        ends = zip(self.edges[:-1], self.edges[1:], strict=True)
        names = [f"heldout_loss/log_snr_{low:.1f}..{high:.1f}" for low, high in ends]
        return {"heldout_loss": self.loss, **dict(zip(names, self.bins, strict=True))}


def heldout_loss(
    sde: SDE,
    eps_fn: ModelFn,
    dataset: Dataset,
    *,
    num_images: int = 0,
    bins: int = 8,
    draws: int = 1,
    weighting: str = "uniform",
    time_law: str = "uniform",
    dequantize: bool = True,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[Tensor], Tensor] | None = None,
) -> HeldOutLoss:
    """The loss on the first samples of a data set.

    Times and noise of sample k are functions of (seed, k), so two networks are given the same noisy data, and their
    difference is the networks'. The result depends neither on the batch size nor on the number of processes.

    Args:
        sde: the process.
        eps_fn: (x_t, t, labels or None) -> predicted noise.
        dataset: held-out data.
        num_images: how many samples; 0 for all.
        bins: number of bins.
        draws: strata of each bin, so evaluations of each sample in it.
        weighting: w(t) of the loss, a key of ``WEIGHTINGS``.
        time_law: p(t) of the loss, a key of ``TIME_LAWS``.
        dequantize: levels are uniform in their bin, as in training, rather than points.
        batch_size: samples at once.
        seed: of all randomness.
        device: where to compute.
        rank: this process; all of them return the same.
        world_size: number of processes.
        total: sums a tensor over the processes, where there are several.

    Raises:
        ValueError: a number or name that makes no sense, no data, or a loss that is not finite.
    """
    require_at_least(0, num_images=num_images)
    require_at_least(1, bins=bins, draws=draws, batch_size=batch_size)
    require_rank(rank, world_size)
    if world_size > 1 and total is None:
        raise ValueError(f"{world_size} processes share the samples; give total, which sums over them")
    law, weight = lookup(TIME_LAWS, time_law, "time law"), lookup(WEIGHTINGS, weighting, "weighting")
    n = min(num_images or len(dataset), len(dataset))
    if not n:
        raise ValueError(f"the data set {dataset.name!r} has no samples on which a loss could be computed")

    def importance(t: Tensor) -> Tensor:
        return weight(sde, t) * law.density(sde, t) / TIME_LAWS["log_snr"].density(sde, t)

    rows = torch.zeros(n, 1 + bins, dtype=torch.float64, device=device)
    for start in range(rank * batch_size, n, world_size * batch_size):
        indices = range(start, min(start + batch_size, n))
        own = Draws(seed, indices, device=device)
        raw = dataset.fetch(indices)
        x0, y = _prepared(raw, dataset, own, dequantize), None if raw.y is None else raw.y.to(device)
        t, errors = _denoising_errors(sde, eps_fn, x0, y, bins * draws, own)
        rows[start : indices.stop, 0] = (importance(t) * errors).mean(1)
        rows[start : indices.stop, 1:] = errors.unflatten(1, (bins, draws)).mean(2)
    return _summary(rows if total is None else total(rows), sde)


def _prepared(raw: Batch, dataset: Dataset, draws: Draws, dequantize: bool) -> Tensor:
    """Model values, float32 (B, *)."""
    x = raw.x.to(draws.device)
    if dataset.quantizer is None:
        return x.float()
    if dequantize:
        return dataset.quantizer.place(x, draws.uniform("dequantize", x.shape[1:]))
    return dataset.quantizer.encode(x)


def _denoising_errors(
    sde: SDE, eps_fn: ModelFn, x0: Tensor, y: Tensor | None, strata: int, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Times and |eps_hat - eps|^2 / d there, both float64 (B, strata), log-SNR ascending."""
    number = torch.arange(strata, dtype=torch.float64, device=x0.device)
    place = (number + draws.uniform("time", (strata,))) / strata
    times = TIME_LAWS["log_snr"](sde, 1 - place)  # its quantile function descends in the log-SNR
    errors = torch.empty_like(times)
    for stratum, t in enumerate(times.unbind(1)):
        eps = draws.normal(f"noise {stratum}", x0.shape[1:])
        with torch.no_grad():
            errors[:, stratum] = dsm_loss(sde, lambda x, t: eps_fn(x, t, y), x0, t=t, eps=eps)
    return times, errors


def _summary(rows: Tensor, sde: SDE) -> HeldOutLoss:
    """Means and their errors, of rows (n, 1 + bins): the loss of each sample, and its bins."""
    n, bins = rows.shape[0], rows.shape[1] - 1
    bad = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the loss of {len(bad)} of {n} held-out samples is not finite (the first is number {bad[0]}): a diverged "
            "network gives this, or bad values in the data"
        )
    mean = rows.mean(0).tolist()
    error = [_std_error(column) if n > 1 else None for column in rows.unbind(1)]
    least, most = sde.log_snr(torch.tensor([sde.T, sde.t_min], dtype=torch.float64)).tolist()
    edges = torch.linspace(least, most, bins + 1, dtype=torch.float64).tolist()
    return HeldOutLoss(mean[0], error[0], tuple(mean[1:]), tuple(error[1:]), tuple(edges), tuple(rows[:, 0].tolist()))


def _std_error(values: Tensor) -> float:
    """Of the mean of values (n,)."""
    return float(values.std() / math.sqrt(len(values)))
