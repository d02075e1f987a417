"""Exact log-likelihood of the probability-flow ODE (arXiv 2011.13456, section 4.3 and appendix D.2).

Along dx/dt = v(x, t) = f x - g^2 s / 2, the density obeys d log p_t(x_t) / dt = -div v. So with z = x(T),

    log p(x) = log prior(z) + integral from t_min to T of div v(x_t, t) dt,    div v = f D - g^2 div s / 2.

This is the density of the model that starts from the prior and flows to t_min. Where the exact score of a known p_t is
used, it differs from log p_{t_min}(x) by the mismatch log prior(z) - log p_T(z), which belongs to the process.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sde_lib.divergence import Divergence, ExactDivergence, HutchinsonDivergence, draw_probes
from sde_lib.ode import integrate
from sde_lib.sde import SDE, ScoreFn, batch_time, match_dims

LOG_PROB_CARE = 10.0
"""How much tighter than the state log p is controlled: it is the result, and an error in it is never undone."""


class LikelihoodResult(NamedTuple):
    """Log-likelihoods and what they cost.

    Attributes:
        log_prob: (B,), nats.
        z: latent code x(T), (B, *).
        nfe: evaluations of the score (each with its vector-Jacobian products).
        std_error: (B,), nats; standard error of log_prob over the probes, None with one probe or exact divergence.
    """

    log_prob: Tensor
    z: Tensor
    nfe: int
    std_error: Tensor | None


def log_likelihood(
    sde: SDE,
    score_fn: ScoreFn,
    x: Tensor,
    *,
    divergence: str = "hutchinson",
    probes: int = 1,
    noise: str = "rademacher",
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    max_nfe: int = 10_000,
    generator: torch.Generator | None = None,
) -> LikelihoodResult:
    """Log density of x under the probability-flow ODE.

    Args:
        sde: the forward process.
        score_fn: (x, t) -> score, differentiable in x.
        x: data (B, *), float; the state of the flow at t_min.
        divergence: "hutchinson" (unbiased, one product for each probe) or "exact" (one for each dimension).
        probes: number of Hutchinson probes; with two or more the result carries its standard error.
        noise: "rademacher" or "gaussian" probes.
        method: ODE method; see ``integrate``.
        rtol: relative tolerance of each sample's state; log p is held to a tenth of it.
        atol: absolute tolerance, likewise.
        steps: number of steps, for fixed-step methods.
        max_nfe: bound on the evaluations.
        generator: source of the probes.

    Raises:
        ValueError: unknown divergence or noise, fewer than one probe, or x that is not floating point.
        IntegrationError: the ODE could not be solved.
    """
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}; give model inputs in floating point (dequantise pixels first)")
    estimate = _divergence(x, divergence, probes, noise, generator)
    columns = probes if divergence == "hutchinson" else 1
    dims = x[0].numel()

    def flow(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, _ = state
        t = batch_time(t, x)
        score, div_score = estimate(score_fn, x, t)
        f, half_g2 = sde.drift_coeff(t), 0.5 * sde.diffusion(t).square()
        drift = match_dims(f, x) * x - match_dims(half_g2, x) * score
        return drift, match_dims(f * dims, div_score) - match_dims(half_g2, div_score) * div_score

    start = (x.detach(), x.new_zeros(len(x), columns))
    (z, change), nfe = integrate(
        flow,
        start,
        sde.t_min,
        sde.T,
        method=method,
        rtol=(rtol, rtol / LOG_PROB_CARE),
        atol=(atol, atol / LOG_PROB_CARE),
        steps=steps,
        breakpoints=sde.breakpoints,
        max_nfe=max_nfe,
    )
    error = change.std(1) / math.sqrt(columns) if columns > 1 else None
    return LikelihoodResult(sde.prior_log_prob(z) + change.mean(1), z, nfe, error)


def _divergence(x: Tensor, name: str, probes: int, noise: str, generator: torch.Generator | None) -> Divergence:
    if name == "exact":
        return ExactDivergence()
    if name != "hutchinson":
        raise ValueError(f"unknown divergence {name!r}; choose from 'exact', 'hutchinson'")
    if probes < 1:
        raise ValueError(f"probes is {probes!r}; Hutchinson's estimate needs at least 1")
    return HutchinsonDivergence(draw_probes(x, probes, noise, generator))


def bits_per_dim(log_prob: Tensor, dims: int, bin_width: float) -> Tensor:
    """Negative log-likelihood of discrete data in bits per dimension, shape of ``log_prob``.

    A level of width w holds the mass p(x) w^D, so bits/dim = -(log p(x) / D + log w) / log 2. With dequantised data
    the mean of this bounds the discrete negative log-likelihood from above (arXiv 1511.01844).

    Args:
        log_prob: log density of the dequantised data, nats, (B,).
        dims: number of dimensions D.
        bin_width: width of one level in model units (2/256 for 256 levels on [-1, 1]); 1 for continuous data.
    """
    if dims < 1 or not bin_width > 0:
        raise ValueError(f"dims is {dims!r} and bin_width {bin_width!r}; both must be positive")
    return -(log_prob / dims + math.log(bin_width)) / math.log(2)
