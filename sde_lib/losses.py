"""Denoising score matching: the continuous loss, DDPM's, their weights, and the laws from which t is drawn.

The continuous loss of one sample is (arXiv 2011.13456, equation 7)

    w(t) mean_i (eps_hat(x_t, t) - eps)_i^2,    x_t = alpha x0 + sigma eps,    t ~ law,

and DDPM's L_simple (arXiv 2006.11239, equation 14) the same with w = 1 and t on the N steps of its chain. Losses are
means over the dimensions of each sample, shape (B,); the caller averages over the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sde_lib.registry import lookup
from sde_lib.schedule import DDPMSchedule
from sde_lib.sde import SDE, batch_time, match_dims

EpsFn = Callable[[Tensor, Tensor], Tensor]
"""(x_t: (B, *), t: (B,)) -> eps_hat (B, *)."""


def _uniform_weight(sde: SDE, t: Tensor) -> Tensor:
    return torch.ones_like(t)


def _likelihood_weight(sde: SDE, t: Tensor) -> Tensor:
    # g^2 |score error|^2 in terms of eps; equals -lambda'(t). Bounds the negative log-likelihood (arXiv 2101.09258).
    return (sde.diffusion(t) / sde.sigma(t)).square()


WEIGHTINGS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "uniform": _uniform_weight,
    "likelihood": _likelihood_weight,
}
"""Name -> w(t) on the squared error of eps: 1 (DDPM's), or g^2 on that of the score."""


def _uniform_time(sde: SDE, u: Tensor) -> Tensor:
    return sde.t_min + u * (sde.T - sde.t_min)


def _log_snr_ends(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """lambda(T) and lambda(t_min), float64 scalars."""
    least, most = sde.log_snr(torch.tensor([sde.T, sde.t_min], dtype=torch.float64, device=u.device))
    return least, most


def _log_snr_time(sde: SDE, u: Tensor) -> Tensor:
    least, most = _log_snr_ends(sde, u)
    return _time_at(sde, most + u.to(torch.float64) * (least - most), u)


def _logistic_time(sde: SDE, u: Tensor, centre: float = 2.5, scale: float = 2.0) -> Tensor:
    least, most = ((end - centre) / scale for end in _log_snr_ends(sde, u))
    p = torch.sigmoid(most) + u.to(torch.float64) * (torch.sigmoid(least) - torch.sigmoid(most))
    return _time_at(sde, centre + scale * torch.logit(p), u)


def _time_at(sde: SDE, lam: Tensor, u: Tensor) -> Tensor:
    return sde.time_from_log_snr(lam).to(u.dtype).clamp(sde.t_min, sde.T)


TIME_LAWS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "uniform": _uniform_time,
    "log_snr": _log_snr_time,
    "logistic": _logistic_time,
}
"""Name -> quantile function u in [0, 1) -> t in [t_min, T].

uniform: t uniform. log_snr: lambda uniform between lambda(T) and lambda(t_min); with the uniform weight this has, up to
a constant, the expectation of the likelihood weight under uniform t, with far less variance: it is that objective's
importance sampling (arXiv 2107.00630, 2101.09258). logistic: lambda logistic about 2.5 with scale 2, cut to the same
range; most draws fall where images on [-1, 1] take shape, as under EDM's normal law of log sigma (arXiv 2206.00364),
but the heavier tails keep the very small noise levels trained that a likelihood needs.
"""


def sample_time(
    sde: SDE,
    batch: int,
    *,
    law: str = "uniform",
    low_discrepancy: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw ``batch`` times by a law of ``TIME_LAWS``, shape (batch,).

    With ``low_discrepancy`` the batch shares one uniform draw, u_i = (u + i / batch) mod 1: each time keeps its law,
    the batch covers [0, 1] evenly and the mean loss varies less (arXiv 2107.00630, appendix I).
    """
    quantile = lookup(TIME_LAWS, law, "time law")
    if low_discrepancy:
        u = torch.rand(1, generator=generator, device=device, dtype=dtype)
        u = (u + torch.arange(batch, device=device, dtype=dtype) / batch) % 1
    else:
        u = torch.rand(batch, generator=generator, device=device, dtype=dtype)
    return quantile(sde, u)


def dsm_loss(
    sde: SDE,
    eps_fn: EpsFn,
    x0: Tensor,
    *,
    weighting: str = "uniform",
    time_law: str = "uniform",
    low_discrepancy: bool = False,
    t: Tensor | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Denoising score matching in continuous time, per sample (B,).

    Args:
        sde: the forward process.
        eps_fn: (x_t, t) -> predicted noise.
        x0: data (B, *).
        weighting: a key of ``WEIGHTINGS``.
        time_law: a key of ``TIME_LAWS``; used when ``t`` is not given.
        low_discrepancy: spread the drawn times evenly; see ``sample_time``.
        t: times () or (B,), instead of drawing them.
        eps: noise (B, *), instead of drawing it.
        generator: source of the draws.
    """
    weight = lookup(WEIGHTINGS, weighting, "weighting")
    if t is None:
        t = sample_time(
            sde,
            len(x0),
            law=time_law,
            low_discrepancy=low_discrepancy,
            generator=generator,
            device=x0.device,
            dtype=x0.dtype,
        )
    t = batch_time(t, x0)
    eps = _noise_like(x0, generator) if eps is None else eps
    error = eps_fn(sde.perturb(x0, t, eps), t) - eps
    return weight(sde, t) * error.square().flatten(1).mean(1)


def ddpm_loss(
    schedule: DDPMSchedule,
    eps_fn: EpsFn,
    x0: Tensor,
    *,
    index: Tensor | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """L_simple on the N steps of a DDPM chain, per sample (B,).

    The network is told the continuous time ``schedule.times[index]``, so that it can be used by every sampler.

    Args:
        schedule: the chain.
        eps_fn: (x_t, t) -> predicted noise.
        x0: data (B, *).
        index: steps 0 .. N-1, int64 (B,), instead of drawing them uniformly.
        eps: noise (B, *), instead of drawing it.
        generator: source of the draws.
    """
    if index is None:
        index = torch.randint(schedule.steps, (len(x0),), generator=generator, device=x0.device)
    eps = _noise_like(x0, generator) if eps is None else eps
    at = index.to(schedule.betas.device)
    signal = schedule.alphas_cumprod[at]
    x = match_dims(signal.sqrt(), x0) * x0 + match_dims((1 - signal).sqrt(), x0) * eps
    error = eps_fn(x, batch_time(schedule.times[at], x0)) - eps
    return error.square().flatten(1).mean(1)


def _noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
