"""Orders of convergence of the deterministic samplers, on Gaussian data, whose probability flow is closed form.

Orders are read on t = 0.7 -> 0.3, where noise and data have like scales. On a run down to the data they show only at
many steps, or too well: the leading error of DPM-Solver++ of order 3 carries a factor sigma(t_end) and leaves order 4
to be seen; and from T on the cosine process has a kink. The errors here are above 1e-13, beyond rounding.
"""

import math
import re
from itertools import pairwise

import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import SAMPLERS, get_sampler, sampler_options, time_grid
from samplers.multistep import Multistep
from sde_lib import METHODS, VPSDE

MEAN = torch.tensor([0.5, -1.0, 0.3, 0.8], dtype=torch.float64)
VARIANCE = torch.tensor([0.1, 0.3, 0.7, 1.5], dtype=torch.float64) ** 2
Z = torch.tensor([[1.0, 1.0, -1.0, 1.0], [-0.5, 0.7, 0.3, 2.0]], dtype=torch.float64)  # the start, in standard scores
PATTERN = 0.4 + 1.2 * torch.rand(10, generator=oracles.generator(5), dtype=torch.float64)  # of irregular steps


def scalar(t):
    return torch.tensor(t, dtype=torch.float64)


def start(sde, t):
    alpha, sigma = sde.marginal(scalar(t))
    return alpha * MEAN + (alpha**2 * VARIANCE + sigma**2).sqrt() * Z


def score_fn(sde):
    def score(x, t):
        alpha, sigma = sde.marginal(t[0])
        return (alpha * MEAN - x) / (alpha**2 * VARIANCE + sigma**2)

    return score


def error(sde, times, x):
    """Distance of x from the exact state at the end of the times, in standard deviations there."""
    alpha, sigma = sde.marginal(times[-1])
    return float(((x - exact(sde, times[0], times[-1])) / (alpha**2 * VARIANCE + sigma**2).sqrt()).norm())


def exact(sde, t, s):
    return oracles.gaussian_flow(sde, start(sde, float(t)), float(t), float(s), MEAN, VARIANCE)


def solve(sde, name, times, callback=None, **options):
    sampler, x = get_sampler(name, grid=times, denoise=False, **options), start(sde, float(times[0]))
    return sampler.sample(sde, score_fn(sde), x.shape, x_init=x, callback=callback).x


def order_of(sizes, grid, run):
    """Slope of the errors that a run (times) -> x has on grids of these sizes."""
    grids = [grid(n) for n in sizes]
    return -oracles.slope(sizes, [run(times) for times in grids])


def natural(sde, name, t=0.7, s=0.3):
    """The sampler's own grid between two times (general methods step in t)."""
    return lambda n: time_grid(sde, get_sampler(name).natural_grid, n, s, t)


def irregular(sde, t=0.7, s=0.3):
    """Steps in the log-SNR of random relative lengths; the pattern repeats, so that errors at all sizes compare."""

    def grid(n):
        lengths = PATTERN.repeat(n // len(PATTERN))
        u = torch.cat([lengths.new_zeros(1), lengths.cumsum(0) / lengths.sum()])
        first, last = sde.log_snr(scalar([t, s]))
        times = sde.time_from_log_snr(first + u * (last - first))
        times[0], times[-1] = t, s
        return times

    return grid


# Which samplers there are.


def is_deterministic(name):
    sde, x, generators = VPSDE(), start(VPSDE(), 1.0), map(oracles.generator, (0, 1))
    loose = {"rtol": 0.5, "atol": 0.5} if name == "adaptive_sde" else {}
    sampler = get_sampler(name, steps=3, **loose)
    return torch.equal(*(sampler.sample(sde, score_fn(sde), x.shape, x_init=x, generator=g).x for g in generators))


def variants(name):
    """Options of every order that the sampler has, by the message that lists them."""
    if "method" in sampler_options(name):
        return [{"method": m} for m in METHODS if get_sampler(name, method=m).order is not None]
    if "order" not in sampler_options(name):
        return [{}]
    with pytest.raises(ValueError, match="has the orders") as caught:
        get_sampler(name, order=0)
    orders = [{"order": int(n)} for n in re.findall(r"\d", str(caught.value).split("has the orders")[1])]
    return orders + ([{"order": 3, "variable": "time"}] if "variable" in sampler_options(name) else [])


CASES = [(name, options) for name in SAMPLERS if is_deterministic(name) for options in variants(name)]
MULTISTEP = [(n, o) for n, o in CASES if issubclass(SAMPLERS[n], Multistep) and o["order"] > 1 and len(o) == 1]

BEYOND = {("unipc", 3): 4, ("deis", 4): 4, ("ipndm", 4): 4}
"""Orders that these approach before the steps are small enough to show the error of their start, of order 3."""


def cases(pairs):
    ids = [" ".join(map(str, [name, *options.values()])) for name, options in pairs]
    return pytest.mark.parametrize(("name", "options"), pairs, ids=ids)


def test_all_deterministic_samplers_were_found():
    names = [name for name, _ in CASES]
    expected = {"ode": 7, "ddim": 1, "euler": 1, "heun": 1, "dpm_solver": 3, "dpmpp": 3, "unipc": 3, "deis": 5}
    assert expected | {"ipndm": 4} == {name: names.count(name) for name in names}


@cases(CASES)
@pytest.mark.parametrize("process", PROCESSES)
def test_the_error_falls_with_the_declared_order(process, name, options):
    sde, declared = PROCESSES[process], get_sampler(name, **options).order
    grid, sizes = natural(sde, name), (20, 35, 60)
    if name == "dpm_solver":
        sizes = (12, 36)  # bisection for times of a log-SNR is slow, and the order shows
    if "variable" in options:
        grid, sizes = lambda n: time_grid(sde, "log_snr", n, 0.3, 0.7), (12, 36)
    upper = BEYOND.get((name, options.get("order")), declared)
    if options == {"method": "midpoint"} and process == "user":
        # Of y' = (V' / 2 V) y the midpoint rule's h^3 error is (L'' + 6 L L' + 4 L^3) / 24 with L = V' / 2 V, which is
        # identically 0 for V quadratic in t: the variance of this process.
        upper = 3
    if options == {"method": "implicit_adams"}:
        # torchdiffeq iterates 4 times at most: that converges at small steps, on stiff processes at smaller ones
        stiff = process in ("ve", "edm")
        grid, sizes = natural(sde, name, 0.7, 0.55 if stiff else 0.3), (40, 80, 160)
        options = options | dict.fromkeys(("rtol", "atol"), 1e-11 if stiff else 1e-12)
    found = order_of(sizes, grid, lambda times: error(sde, times, solve(sde, name, times, **options)))
    assert declared - 0.3 < found < upper + 0.3


@cases([("ddim", {}), ("heun", {}), ("dpmpp", {"order": 2}), ("ipndm", {"order": 2})])
@pytest.mark.parametrize("process", PROCESSES)
def test_low_orders_show_on_the_whole_way_from_the_prior_to_the_data(process, name, options):
    """On the sampler's own grid, from T to its t_end of 1e-3."""
    sde = PROCESSES[process]
    grid = natural(sde, name, sde.T, 1e-3)
    found = order_of((60, 120), grid, lambda times: error(sde, times, solve(sde, name, times, **options)))
    assert found == pytest.approx(get_sampler(name, **options).order, abs=0.3)


# Multistep methods on any grid, to the last step.


@cases(MULTISTEP)
@pytest.mark.parametrize("process", PROCESSES)
def test_multistep_methods_keep_their_order_on_irregular_steps(process, name, options):
    sde, declared = PROCESSES[process], get_sampler(name, **options).order
    upper = BEYOND.get((name, options["order"]), declared)
    found = order_of((30, 60), irregular(sde), lambda times: error(sde, times, solve(sde, name, times, **options)))
    assert declared - 0.3 < found < upper + 0.3


@cases(MULTISTEP)
@pytest.mark.parametrize("process", PROCESSES)
def test_multistep_methods_keep_their_order_to_the_last_step(process, name, options):
    """A polynomial through k points errs by h^(k + 1) in a step, and so does the last (which UniPC does not correct).

    At these steps the next power shows too; the bounds are halfway to the orders beside. A last step of lower order, as
    published codes take at few steps, is seen: DDIM's errs by h^2.
    """
    sde, sizes, defects = PROCESSES[process], (30, 90), {"own": [], "ddim": []}
    for n in sizes:
        states, times = [], natural(sde, name)(n)
        own = solve(sde, name, times, lambda progress, states=states: states.append(progress.x), **options)
        t, s = times[-2:].tolist()
        lower = get_sampler("ddim", grid=[t, s], denoise=False)
        ddim = lower.sample(sde, score_fn(sde), own.shape, x_init=states[-2]).x
        true = oracles.gaussian_flow(sde, states[-2], t, s, MEAN, VARIANCE)  # from where the last step begins
        for key, found in (("own", own), ("ddim", ddim)):
            defects[key].append(float((found - true).norm()))
    assert options["order"] + 0.5 < -oracles.slope(sizes, defects["own"]) < options["order"] + 1.5
    assert -oracles.slope(sizes, defects["ddim"]) == pytest.approx(2, abs=0.3)


# The regression sees a wrong weight.


def third_order(sde, times, second_difference):
    """DPM-Solver++ 3M in the notation of its code (h, r0, r1, D1, D2), with exact values at its first three times.

    The code's weight of D2 is phi_3; the polynomial through the three predictions has 2 phi_3.
    """
    lam = [float(sde.log_snr(t)) / 2 for t in times]

    def data(x, t):
        alpha, sigma = sde.marginal(t)
        return (x + sigma**2 * score_fn(sde)(x, t[None])) / alpha

    past = [exact(sde, times[0], t) for t in times[:3]]
    x, m = past[-1], [data(x, t) for x, t in zip(past, times[:3], strict=True)]
    for i in range(3, len(times)):
        h, h0, h1 = lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2], lam[i - 2] - lam[i - 3]
        r0, r1 = h0 / h, h1 / h
        near, far = (m[-1] - m[-2]) / r0, (m[-2] - m[-3]) / r1
        d1, d2 = near + r0 / (r0 + r1) * (near - far), (near - far) / (r0 + r1)
        phi1 = math.expm1(-h)
        phi2 = phi1 / h + 1
        phi3 = phi2 / h - 0.5
        (alpha, sigma), before = sde.marginal(times[i]), sde.sigma(times[i - 1])
        x = sigma / before * x - alpha * (phi1 * m[-1] - phi2 * d1 + second_difference * phi3 * d2)
        m = [*m[1:], data(x, times[i])]
    return x


@pytest.mark.parametrize("regular", [True, False])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_published_third_order_weight_fails_and_the_exact_one_passes(process, regular):
    sde = PROCESSES[process]
    grid = natural(sde, "dpmpp") if regular else irregular(sde)
    published, mended = (
        order_of((30, 90), grid, lambda times, f=factor: error(sde, times, third_order(sde, times, f)))
        for factor in (1, 2)
    )
    assert mended == pytest.approx(3, abs=0.3)
    assert published < 2.6


@pytest.mark.parametrize("process", PROCESSES)
def test_fixed_adams_bashforth_weights_fail_on_irregular_steps(process):
    """The published iPNDM takes 23, -16, 5 over 12 on any grid; the sampler's weights follow the grid (above)."""
    sde = PROCESSES[process]

    def fixed(times):
        def eps(x, t):
            return -sde.sigma(t) * score_fn(sde)(x, t[None])

        past = [exact(sde, times[0], t) for t in times[:3]]
        x, e = past[-1], [eps(x, t) for x, t in zip(past, times[:3], strict=True)]
        for t, s in pairwise(times[2:]):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
            step = sigma_s / alpha_s - sigma_t / alpha_t
            x = alpha_s * (x / alpha_t + step * (23 * e[-1] - 16 * e[-2] + 5 * e[-3]) / 12)
            e = [*e[1:], eps(x, s)]
        return error(sde, times, x)

    assert order_of((30, 60, 120), irregular(sde), fixed) < 1.3


@pytest.mark.parametrize(
    ("steps", "order", "t_end"), [(7, 2, 1e-3), (8, 3, 1e-3), (15, 3, 1e-3), (16, 4, 1e-3), (24, 4, 3e-4)]
)
def test_deis_left_alone_chooses_its_order_grid_and_end_by_the_number_of_steps(steps, order, t_end):
    """As docs/samplers.md says; a neighbouring choice would give other numbers."""
    sde, x = VPSDE(), start(VPSDE(), 1.0)

    def run(**options):
        return get_sampler("deis", steps=steps, **options).sample(sde, score_fn(sde), x.shape, x_init=x).x

    assert torch.equal(run(), run(order=order, rho=float(order - 1), t_end=t_end, grid="asinh"))
    for other in ({"order": order - 1}, {"rho": float(order)}, {"t_end": 5e-4}):
        choice = {"order": order, "rho": float(order - 1), "t_end": t_end} | other
        assert not torch.equal(run(), run(**choice))
