"""Checks of the process against the data: its end, its start, and where between them training spends its draws.

All of them see the process by alpha and sigma alone, and the ends of DDPM's chain beside its own where that is used.
"""

import math
from collections.abc import Iterator

import torch

from evaluation.checks.remedy import round_up, sufficient
from evaluation.checks.subject import Finding, Plan, Row, Subject
from evaluation.prior_gap import kl_from_prior
from sde_lib import SDE, TIME_LAWS, ddpm_schedule, lookup

MOST_SNR = 1e-3
"""Largest SNR at the end: DDPM's chain leaves 4.0e-5, VE and EDM as published 4e-4 and 1.6e-4; the 4.7e-3 of Stable
Diffusion's is the flaw that arXiv 2305.08891 describes."""
KL_FAULT, KL_ADVICE = 0.5, 0.2
"""Nats from p_T to the prior. A mean of 1/2 alone gives VE as published 0.15 on CIFAR-10 and 0.19 on CelebA; one of 0.3
gives VP 0.4 on images of 256x256. At 0.5 up to half of the samples may differ."""
ENOUGH_NOISE = 150.0
"""Noise-to-signal ratio to aim at where alpha vanishes, and more of it costs little: that of DDPM and VP."""
MOST_BINS = 3.0
"""Largest noise at the start, in widths of a level: VE as published, 0.01 on [0, 1], has 2.6."""
MOST_OF_STD = 0.05
"""The same for continuous data, in their standard deviation."""
FINE = 0.1
"""Share of the largest noise at the start to aim at: EDM's 0.002 on [-1, 1] is 0.26 of a level."""
FAR = 20.0
"""How many times larger or smaller than the data the noise of a median draw may be; recipes have up to 5."""


def end_of_process(s: Subject) -> Iterator[Row | Finding]:
    """Has the noise at T covered the data, so that sampling may start from the prior?

    Of two rules one must hold: little signal is left (``MOST_SNR``); or the signal stays as it is and the noise is
    larger than any distance between two samples (arXiv 2006.09011, technique 1). And p_T must be near the prior.
    """
    yield Row("largest distance between samples", f"{s.diameter:.4g}", "any")
    found, fault = "", False
    for name, alpha, sigma in _ends(s.sde, s.plan):
        noise, kl = sigma / alpha, kl_from_prior(s.fit, alpha, sigma, s.sde.prior_std)
        covered = _covered(s, alpha, sigma)
        known = f"SNR {noise**-2:.2g}, noise {noise:.3g} times the signal"
        limit = f"SNR at most {MOST_SNR:g}" + f", or noise above {s.diameter:.3g}" * _keeps_signal(alpha)
        yield Row(f"end: {name}", known, limit, covered)
        moved = alpha * math.sqrt(s.fit.mean_square) / s.sde.prior_std
        distance = f"{kl:.2g} nats, {kl / s.fit.dims:.1g} a dimension; mean off by {moved:.2g} sd"
        yield Row(f"from the prior: {name}", distance, f"at most {KL_ADVICE:g} nats", kl <= KL_ADVICE)
        if not covered or kl > KL_ADVICE:
            found = f"{name} {known}, {kl:.2g} nats from the prior"
            fault = fault or not covered or kl > KL_FAULT
    if not found:
        return
    flags = _more_noise(s)
    yield Finding(
        fault,
        f"the process does not cover the data: {found}; two samples are up to {s.diameter:.3g} apart",
        "sampling starts from the prior, where training never was: means and large structures of samples come out "
        "wrong (arXiv 2305.08891)",
        "end with more noise" if flags else "take a process with more noise at its end, or centre and shrink the data",
        flags,
    )


def start_of_process(s: Subject) -> Iterator[Row | Finding]:
    """Is the noise at t_min, or on the chain's first step, fine enough for the detail in the data?"""
    pixels = s.train.quantizer
    unit, most, name = s.train.whole_std, MOST_OF_STD, "of the data's deviation"
    if pixels is not None:
        unit, most, name = pixels.bin_width, MOST_BINS, "widths of a level"
    if not unit:
        return
    place, alpha, sigma = _start(s.sde, s.plan)
    noise = sigma / alpha / unit
    measured = f"{sigma / alpha:.2g}, {noise:.2g} {name}"
    yield Row(f"least noise: {place}", measured, f"at most {most:g} {name}", noise <= most)
    if noise > most:
        yield Finding(
            True,
            f"the least noise, {place}, is {measured}",
            "finer detail is never seen without noise: it is missing in samples, and costs bits in likelihoods",
            "begin with less noise",
            _less_noise(s, most * unit),
        )


def draws_of_time(s: Subject) -> Iterator[Row | Finding]:
    """Does training spend its draws at noise of about the size of the data, where they take shape?"""
    std = s.train.whole_std
    if not std:
        return
    median = _median_noise(s.sde, s.plan) / std
    ok = 1 / FAR <= median <= FAR
    law = "steps of the chain" if s.plan.on_chain else f"time law {s.plan.time_law}"
    yield Row(f"median noise: {law}", f"{median:.2g} of the data's deviation", f"{1 / FAR:g} to {FAR:g}", ok)
    if ok:
        return
    medians = {name: _median_noise(s.sde, Plan(None, None, time_law=name)) / std for name in TIME_LAWS}
    best = min(medians, key=lambda name: abs(math.log(medians[name])))
    helps = not s.plan.on_chain and 1 / FAR <= medians[best] <= FAR
    yield Finding(
        False,
        f"half of the draws of training ({law}) have noise {'below' if median < 1 else 'above'} {median:.2g} times the "
        f"standard deviation of the data, {std:.2g}",
        "too few draws are left for the noise levels at which the data take shape",
        f"take another law, whose median is {medians[best]:.2g} times"
        if helps
        else "scale the data to a standard deviation of about 0.5, or choose another process",
        (f"--config.training.time_law={best}",) if helps else (),
    )


def _keeps_signal(alpha: float) -> bool:
    return alpha > 0.999  # 1, but for rounding


def _covered(s: Subject, alpha: float, sigma: float) -> bool:
    return (alpha / sigma) ** 2 <= MOST_SNR or (_keeps_signal(alpha) and sigma >= s.diameter)


def _kernel(sde: SDE, t: float) -> tuple[float, float]:
    alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


def _chain(sde: SDE, plan: Plan, step: int) -> tuple[float, float]:
    """Both of a step of DDPM's chain."""
    kept = float(ddpm_schedule(sde, plan.chain).alphas_cumprod[step])
    return math.sqrt(kept), math.sqrt(1 - kept)


def _ends(sde: SDE, plan: Plan) -> list[tuple[str, float, float]]:
    """Name, alpha and sigma of where noise is largest: of the process, and of the chain where it is used."""
    found = [("at T", *_kernel(sde, sde.T))]
    return [*found, (f"on step {plan.chain} of the chain", *_chain(sde, plan, -1))] if plan.chain else found


def _start(sde: SDE, plan: Plan) -> tuple[str, float, float]:
    """The same of where it is least; on the chain where that is trained on."""
    if plan.on_chain:
        return "on the chain's first step", *_chain(sde, plan, 0)
    return "at t_min", *_kernel(sde, sde.t_min)


def _more_noise(s: Subject) -> tuple[str, ...]:
    """The flag that makes the end what it should be; none where no setting does."""

    def good(sde: SDE) -> bool:
        for _, alpha, sigma in _ends(sde, s.plan):
            wanted = s.diameter if _keeps_signal(alpha) else max(ENOUGH_NOISE, s.diameter)
            if sigma / alpha < wanted or kl_from_prior(s.fit, alpha, sigma, sde.prior_std) > KL_ADVICE:
                return False
        return True

    for knob in ("sigma_max", "beta_max"):
        value = sufficient(s.sde, knob, good)
        if value is not None:
            return (f"--config.sde.{knob}={value:g}",)
    return ()


def _less_noise(s: Subject, most: float) -> tuple[str, ...]:
    """The flag with which the noise at the start is no more than it may be; none where no setting does that."""
    if s.plan.on_chain:  # beta_0 falls as 1 / steps, and the noise as its root
        alpha, sigma = _chain(s.sde, s.plan, 0)
        return (f"--config.training.ddpm_steps={round_up(s.plan.chain * (sigma / alpha / most) ** 2):.0f}",)
    return (f"--config.sde.sigma_min={FINE * most:.2g}",) if hasattr(s.sde, "sigma_min") else ()


def _median_noise(sde: SDE, plan: Plan) -> float:
    """Noise-to-signal ratio at the median of the law from which training draws."""
    if plan.on_chain:
        alpha, sigma = _chain(sde, plan, plan.chain // 2)
    else:
        law = lookup(TIME_LAWS, plan.time_law, "time law")
        alpha, sigma = _kernel(sde, float(law(sde, torch.tensor(0.5, dtype=torch.float64))))
    return sigma / alpha
