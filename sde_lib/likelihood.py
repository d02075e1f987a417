"""Exact log-likelihood of the probability-flow ODE (arXiv 2011.13456, section 4.3 and appendix D.2).

Along an ODE the log density falls by the divergence. So with z = x(T), and in the variables of ``probability_flow``,

    log p(x) = log prior(z) + D log(n_T / n_start) + integral of div_y (dy/du) du,   div_y = n div_x eps_hat - D tanh u.

This is the density of the model that starts from the prior and flows to t_start. Where the exact score of a known p_t
is used, it differs from log p_{t_start}(x) by the mismatch log prior(z) - log p_T(z), which belongs to the process.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sde_lib.arguments import is_whole, require_positive
from sde_lib.divergence import Divergence, ExactDivergence, HutchinsonDivergence, draw_probes
from sde_lib.ode import integrate
from sde_lib.probability_flow import Clock, check_state
from sde_lib.sde import SDE, ScoreFn, batch_time


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
    probes: int | Tensor = 1,
    noise: str = "rademacher",
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    max_nfe: int = 10_000,
    log_prob_care: float = 20.0,
    t_start: float | None = None,
    generator: torch.Generator | None = None,
) -> LikelihoodResult:
    """Log density of x under the probability-flow ODE.

    Args:
        sde: the forward process.
        score_fn: (x, t) -> score, differentiable in x.
        x: data (B, *), float; the state of the flow at ``t_start``.
        divergence: "hutchinson" (unbiased, one product for each probe) or "exact" (one for each dimension).
        probes: number of Hutchinson probes, or the probes themselves (K, B, *), which then take the place of noise and
            generator; with two or more the result carries its standard error.
        noise: "rademacher" or "gaussian" probes.
        method: ODE method; see ``integrate``.
        rtol: relative tolerance of each sample: of its state y (root mean square) and, by ``log_prob_care``, its log p.
        atol: absolute tolerance, likewise.
        steps: number of steps, for fixed-step methods.
        max_nfe: bound on the evaluations.
        log_prob_care: how much tighter than the state log p is held; it is the result, and an error in it is never
            undone.
        t_start: time at which x is a state; None for the process's t_min.
        generator: source of the probes.

    Raises:
        ValueError: unknown divergence or noise, fewer than one probe, t_start outside (0, T], or x that is not finite
            and floating point.
        IntegrationError: the ODE could not be solved.
    """
    check_state(x)
    require_positive(rtol=rtol, atol=atol, log_prob_care=log_prob_care)
    estimate = _divergence(x, divergence, probes, noise, generator)
    columns = len(estimate.probes) if isinstance(estimate, HutchinsonDivergence) else 1
    dims = x[0].numel()
    clock = Clock(sde, sde.t_min if t_start is None else t_start, sde.T)
    n_start, n_end = clock.norms(x)

    def flow(u: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y, _ = state
        at = clock.place(u)
        score, div_score = estimate(score_fn, y * at.norm.to(y), batch_time(at.t, y))
        return at.velocity(score, y), at.divergence(div_score, dims)

    def drift_alone(u: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y, change = state
        at = clock.place(u)
        with torch.no_grad():
            return at.velocity(score_fn(y * at.norm.to(y), batch_time(at.t, y)), y), torch.zeros_like(change)

    (end, change), nfe = integrate(
        flow,
        (x.detach() / n_start, x.new_zeros(len(x), columns)),
        clock.u0,
        clock.u1,
        method=method,
        rtol=(rtol, rtol / log_prob_care),
        atol=(atol, atol / log_prob_care),
        steps=steps,
        max_nfe=max_nfe,
        time_of=clock.time,
        drift_alone=drift_alone,
    )
    z = end * n_end
    log_prob = sde.prior_log_prob(z) + dims * (n_end / n_start).log() + change.mean(1)
    error = change.std(1) / math.sqrt(columns) if columns > 1 else None
    return LikelihoodResult(log_prob, z, nfe, error)


def _divergence(
    x: Tensor, name: str, probes: int | Tensor, noise: str, generator: torch.Generator | None
) -> Divergence:
    if name == "exact":
        return ExactDivergence()
    if name != "hutchinson":
        raise ValueError(f"unknown divergence {name!r}; choose from 'exact', 'hutchinson'")
    if isinstance(probes, Tensor):
        if probes.ndim == 0 or len(probes) < 1 or probes.shape[1:] != x.shape:
            raise ValueError(f"probes have shape {tuple(probes.shape)}; give (K, {', '.join(map(str, x.shape))})")
        return HutchinsonDivergence(probes.to(x))
    if not is_whole(probes) or probes < 1:
        raise ValueError(f"probes is {probes!r}; Hutchinson's estimate needs a whole number, at least 1")
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
