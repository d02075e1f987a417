"""Denoising score matching: the continuous loss, DDPM's, their weights, and the laws from which t is drawn.

The continuous loss of one sample is (arXiv 2011.13456, equation 7)

    w(t) mean_i (eps_hat(x_t, t) - eps)_i^2,    x_t = alpha x0 + sigma eps,    t ~ law,

importance-sampled it is divided by (T - t_min) p(t), the density of the law relative to that of uniform t; and DDPM's
L_simple (arXiv 2006.11239, equation 14) is the same with w = 1 and t on the N steps of its chain. Losses are means over
the dimensions of each sample, shape (B,); the caller averages over the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class TimeLaw:
    """A law from which t is drawn: a quantile function draws it, a density weighs it.

    Attributes:
        quantile: (sde, u in [0, 1]) -> t in [t_min, T], monotonic, of u's shape and dtype.
        density: (sde, t in [t_min, T]) -> p(t), of t's shape and dtype; its integral from t_min to T is 1.
    """

    quantile: Callable[[SDE, Tensor], Tensor]
    density: Callable[[SDE, Tensor], Tensor]

    def __call__(self, sde: SDE, u: Tensor) -> Tensor:
        """The quantile function."""
        return self.quantile(sde, u)


def _uniform_time(sde: SDE, u: Tensor) -> Tensor:
    return sde.t_min + u * (sde.T - sde.t_min)


def _uniform_density(sde: SDE, t: Tensor) -> Tensor:
    return torch.full_like(t, 1 / (sde.T - sde.t_min))


def _law_of_log_snr(
    cdf: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], density: Callable[[Tensor], Tensor]
) -> TimeLaw:
    """The law of t under which lambda(t) has this law, cut to [lambda(T), lambda(t_min)].

    p(t) = density(lambda) (-lambda') / (cdf(lambda(t_min)) - cdf(lambda(T))): neither function need be normalised.
    """

    def ends(sde: SDE) -> list[float]:
        at = torch.tensor([sde.T, sde.t_min], dtype=torch.float64)
        return cdf(sde.log_snr(at)).tolist()

    def quantile(sde: SDE, u: Tensor) -> Tensor:
        least, most = ends(sde)
        lam = inverse(most + u.to(torch.float64) * (least - most))
        return sde.time_from_log_snr(lam).to(u.dtype).clamp(sde.t_min, sde.T)

    def time_density(sde: SDE, t: Tensor) -> Tensor:
        least, most = ends(sde)
        return density(sde.log_snr(t)) * _likelihood_weight(sde, t) / (most - least)

    return TimeLaw(quantile, time_density)


def _logistic_law(centre: float, scale: float) -> TimeLaw:
    def standard(lam: Tensor) -> Tensor:
        return (lam - centre) / scale

    return _law_of_log_snr(
        cdf=lambda lam: torch.sigmoid(standard(lam)),
        inverse=lambda p: centre + scale * torch.logit(p),
        density=lambda lam: torch.sigmoid(standard(lam)) * torch.sigmoid(-standard(lam)) / scale,
    )


TIME_LAWS: dict[str, TimeLaw] = {
    "uniform": TimeLaw(_uniform_time, _uniform_density),
    "log_snr": _law_of_log_snr(cdf=lambda lam: lam, inverse=lambda p: p, density=torch.ones_like),
    "logistic": _logistic_law(centre=2.5, scale=2.0),
}
"""Name -> law of t on [t_min, T]; called as ``law(sde, u)``, its quantile function.

uniform: t uniform, p(t) = 1 / (T - t_min). log_snr: lambda uniform between lambda(T) and lambda(t_min), so p(t) =
-lambda'(t) / (lambda(t_min) - lambda(T)), in proportion to the likelihood weight: it is that objective's importance
sampling, with far less variance (arXiv 2107.00630, 2101.09258). logistic: lambda logistic about 2.5 with scale 2, cut
to the same range; most draws fall where images on [-1, 1] take shape, as under EDM's normal law of log sigma (arXiv
2206.00364), but the heavier tails keep the very small noise levels trained that a likelihood needs.
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
    quantile = lookup(TIME_LAWS, law, "time law").quantile
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
    importance: bool = False,
    t: Tensor | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Denoising score matching in continuous time, per sample (B,).

    The law of t is part of the objective: E[loss] is the integral of p(t) w(t) E|eps_hat - eps|^2 / D over t. With
    ``importance`` it is a mere proposal: the loss is divided by (T - t_min) p(t), so its expectation is that of uniform
    t whatever the law; only the variance depends on it, and is least where p(t) follows w(t) times the error.

    Training for likelihood is ``weighting="likelihood"``; with ``time_law="log_snr"`` and ``importance`` the weight
    becomes the constant (lambda(t_min) - lambda(T)) / (T - t_min): the importance sampling of arXiv 2101.09258.

    Args:
        sde: the forward process.
        eps_fn: (x_t, t) -> predicted noise.
        x0: data (B, *).
        weighting: a key of ``WEIGHTINGS``.
        time_law: a key of ``TIME_LAWS``; used when ``t`` is not given.
        low_discrepancy: spread the drawn times evenly; see ``sample_time``.
        importance: divide by the density of the drawn times relative to that of uniform t.
        t: times () or (B,), instead of drawing them.
        eps: noise (B, *), instead of drawing it.
        generator: source of the draws.

    Raises:
        ValueError: unknown names, t of another shape, or ``importance`` of times that no law has drawn.
    """
    if importance and t is not None:
        raise ValueError(
            "importance=True divides by the density of the law that draws t, but t is given; "
            "leave t out to draw it by time_law, or set importance=False"
        )
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
    eps = noise_like(x0, generator) if eps is None else eps
    error = eps_fn(sde.perturb(x0, t, eps), t) - eps
    loss = weight(sde, t) * error.square().flatten(1).mean(1)
    return loss / relative_density(sde, time_law, t) if importance else loss


def relative_density(sde: SDE, law: str, t: Tensor) -> Tensor:
    """(T - t_min) p(t), the density of a law of ``TIME_LAWS`` relative to that of uniform t."""
    return (sde.T - sde.t_min) * lookup(TIME_LAWS, law, "time law").density(sde, t)


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
    eps = noise_like(x0, generator) if eps is None else eps
    at = index.to(schedule.betas.device)
    signal = schedule.alphas_cumprod[at]
    x = match_dims(signal.sqrt(), x0) * x0 + match_dims((1 - signal).sqrt(), x0) * eps
    error = eps_fn(x, batch_time(schedule.times[at], x0)) - eps
    return error.square().flatten(1).mean(1)


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of x."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
