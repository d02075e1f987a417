"""Bounds of log p(x0) from the predicted noise alone: the SDE's evidence lower bound, and DDPM's on its chain.

Both belong to the generative SDE or chain (not to the probability-flow ODE), need no divergence and no solver, and are
three terms in nats, each an expectation over x_t = alpha x0 + sigma eps (arXiv 2101.09258, 2006.11239, 2107.00630):

    -log p(x0)  <=  prior + diffusion + reconstruction
    prior            KL( N(alpha_T x0, sigma_T^2 I) || N(0, prior_std^2 I) )
    diffusion        SDE:    1/2 integral of E|eps - eps_hat(x_t, t)|^2 d lambda, lambda the log-SNR from T to t_min
                     chain:  1/2 sum over i = 2 .. N of expm1(lambda_{i-1} - lambda_i) E|eps - eps_hat(x_i, t_i)|^2
    reconstruction   E[-log p(x0 | x_1)] with N(x0_hat, (sigma_1 / alpha_1)^2 I) at t_min, or at the chain's first t

With the exact score of the data the SDE's bound is tight, but for the mismatch of the prior and what t_min leaves out.
The chain's sum is above the integral; most of the difference lies in its first steps, where the log-SNR falls by log 2,
log 3/2, ... whatever N is: DDPM's bound is meant for levels, which are coarser than these steps.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sde_lib.arguments import is_whole
from sde_lib.losses import TIME_LAWS, EpsFn, dsm_loss, noise_like
from sde_lib.probability_flow import check_state
from sde_lib.schedule import ddpm_schedule
from sde_lib.sde import SDE, batch_time, match_dims

Decoder = Callable[[Tensor, Tensor], Tensor]
"""(mean: (B, *), std: ()) -> log-probability of the data under N(mean, std^2 I), nats (B,)."""


class BoundResult(NamedTuple):
    """A lower bound of log p and its parts, all (B,) in nats: log_prob = -(prior + diffusion + reconstruction).

    Attributes:
        log_prob: the bound; an unbiased estimate of it over the draws of noise (and of times).
        prior: Kullback-Leibler divergence at the end of the process; exact.
        diffusion: the denoising error, weighted.
        reconstruction: -log p(x0 | x_1).
        nfe: evaluations of the network.
    """

    log_prob: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    nfe: int


def elbo(
    sde: SDE,
    eps_fn: EpsFn,
    x0: Tensor,
    *,
    samples: int = 16,
    decoder: Decoder | None = None,
    u: Tensor | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> BoundResult:
    """Evidence lower bound of the generative SDE (arXiv 2101.09258; in this form 2107.00630).

    The integral over lambda is estimated at ``samples`` places of each image, evenly spread behind one random offset.

    Args:
        sde: the process.
        eps_fn: (x_t, t) -> predicted noise.
        x0: data (B, *).
        samples: places M of the integral.
        decoder: reconstruction of discrete data; None for the Gaussian density of x0 itself.
        u: offsets (B,) in [0, 1), instead of drawing them.
        eps: noise (M + 1, B, *), the last for the reconstruction, instead of drawing it.
        generator: source of the draws.

    Raises:
        ValueError: fewer than one sample, x0 that is not floating point, or u or eps of another shape.
    """
    if not is_whole(samples) or samples < 1:
        raise ValueError(f"samples is {samples!r}; the integral needs a whole number of places, at least 1")
    _check(x0, samples, u, eps)
    u = torch.rand(len(x0), generator=generator, device=x0.device) if u is None else u
    least, most = sde.log_snr(torch.tensor([sde.T, sde.t_min], dtype=torch.float64)).tolist()
    diffusion = x0.new_zeros(len(x0))
    for m in range(samples):
        t = TIME_LAWS["log_snr"](sde, (u.to(torch.float64) + m / samples) % 1)
        diffusion = diffusion + _squared_error(sde, eps_fn, x0, t, _noise(eps, m, x0, generator))
    diffusion = 0.5 * (most - least) / samples * diffusion
    prior, reconstruction = _prior(sde, x0, sde.T), _reconstruction(sde, eps_fn, x0, sde.t_min, decoder, eps, generator)
    return BoundResult(-(prior + diffusion + reconstruction), prior, diffusion, reconstruction, samples + 1)


def ddpm_bound(
    sde: SDE,
    eps_fn: EpsFn,
    x0: Tensor,
    *,
    steps: int = 500,
    samples: int | None = None,
    decoder: Decoder | None = None,
    u: Tensor | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> BoundResult:
    """DDPM's variational bound on its chain of N steps, with the posterior's variance (arXiv 2006.11239, equation 5).

    Args:
        sde: a variance-preserving process; its chain is ``ddpm_schedule(sde, steps)``.
        eps_fn: (x_t, t) -> predicted noise.
        x0: data (B, *).
        steps: length N of the chain.
        samples: number of transitions that are evaluated for each image, drawn in proportion to their weights, evenly
            spread behind one random offset; None, or N - 1, for each of the N - 1 once.
        decoder: reconstruction of discrete data; None for the Gaussian density of x0 itself.
        u: offsets (B,) in [0, 1), instead of drawing them.
        eps: noise (samples + 1, B, *), the last for the reconstruction, instead of drawing it.
        generator: source of the draws.

    Raises:
        TypeError: the process has no such chain.
        ValueError: samples is not in 1 .. steps - 1, the steps are too few, x0 is not floating point, or u or eps has
            another shape.
    """
    times = ddpm_schedule(sde, steps).times
    transitions = steps - 1
    samples = transitions if samples is None else samples
    if not is_whole(samples) or not 1 <= samples <= transitions:
        raise ValueError(f"samples is {samples!r}; give 1 to {transitions}, as a chain of {steps} steps has")
    _check(x0, samples, u, eps)
    lam = sde.log_snr(times)
    weights = 0.5 * torch.expm1(lam[:-1] - lam[1:])
    u = torch.rand(len(x0), generator=generator, device=x0.device) if u is None else u
    diffusion = x0.new_zeros(len(x0))
    for m in range(samples):
        if samples == transitions:
            index, factor = torch.full((len(x0),), m), weights[m]
        else:
            index, factor = _drawn((u.to(weights) + m / samples) % 1, weights), weights.sum() / samples
        error = _squared_error(sde, eps_fn, x0, times[index + 1], _noise(eps, m, x0, generator))
        diffusion = diffusion + float(factor) * error
    prior = _prior(sde, x0, float(times[-1]))
    reconstruction = _reconstruction(sde, eps_fn, x0, float(times[0]), decoder, eps, generator)
    return BoundResult(-(prior + diffusion + reconstruction), prior, diffusion, reconstruction, samples + 1)


def _check(x0: Tensor, samples: int, u: Tensor | None, eps: Tensor | None) -> None:
    """Raise ValueError unless x0 is a state, and u (B,) and eps (samples + 1, B, *) fit it."""
    check_state(x0)
    if u is not None and u.shape != x0.shape[:1]:
        raise ValueError(f"u has shape {tuple(u.shape)}; give one offset for each image, {tuple(x0.shape[:1])}")
    if eps is not None and eps.shape != (samples + 1, *x0.shape):
        raise ValueError(f"eps has shape {tuple(eps.shape)}; give {(samples + 1, *x0.shape)}, reconstruction last")


def _drawn(place: Tensor, weights: Tensor) -> Tensor:
    """Indices drawn with probabilities proportional to the weights, by their quantile function at the places (B,)."""
    share = (weights / weights.sum()).cumsum(0)
    return torch.searchsorted(share, place).clamp(max=len(weights) - 1)


def _noise(eps: Tensor | None, m: int, x0: Tensor, generator: torch.Generator | None) -> Tensor:
    """Row m of the noise that was given, or a fresh draw, (B, *)."""
    return noise_like(x0, generator) if eps is None else eps[m]


def _squared_error(sde: SDE, eps_fn: EpsFn, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """|eps - eps_hat(x_t, t)|^2 of each sample (B,): the loss that is trained, summed over the dimensions."""
    return x0[0].numel() * dsm_loss(sde, eps_fn, x0, t=t, eps=eps)


def _prior(sde: SDE, x0: Tensor, t: float) -> Tensor:
    """KL( N(alpha x0, sigma^2 I) || N(0, prior_std^2 I) )."""
    alpha, sigma = (value.item() / sde.prior_std for value in sde.marginal(torch.tensor(t, dtype=torch.float64)))
    square = (alpha * x0).reshape(len(x0), -1).square().sum(1)
    return 0.5 * (square + x0[0].numel() * (sigma**2 - 1 - 2 * math.log(sigma)))


def _reconstruction(
    sde: SDE,
    eps_fn: EpsFn,
    x0: Tensor,
    t: float,
    decoder: Decoder | None,
    eps: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """-log p(x0 | x_1) under N(x0_hat(x_1), (sigma / alpha)^2 I) at time t."""
    noise = _noise(eps, -1, x0, generator)
    alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
    times = batch_time(t, x0)
    x = sde.perturb(x0, times, noise)
    mean = (x - match_dims(sigma, x) * eps_fn(x, times)) / match_dims(alpha, x)
    std = sigma / alpha
    if decoder is not None:
        return -decoder(mean, std)
    square = ((x0 - mean) / std.to(x0)).reshape(len(x0), -1).square().sum(1)
    return 0.5 * square + x0[0].numel() * (math.log(float(std)) + 0.5 * math.log(2 * math.pi))
