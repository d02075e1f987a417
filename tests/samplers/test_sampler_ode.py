"""The probability-flow sampler against the exact flow of Gaussian data, and the orders of its fixed methods."""

import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import get_sampler
from sde_lib import METHODS, IntegrationError

ADAPTIVE = [name for name, kind in METHODS.items() if kind != "fixed"]
FIXED = {"euler": (1, 1), "midpoint": (2, 2), "heun2": (2, 2), "heun3": (3, 3), "rk4": (4, 4)}  # order, calls in a step
DIMS = (2, 3)
DATA, MEAN, VARIANCE = oracles.gaussian(DIMS)
T_END = 1e-3


def start(sde, t, n=8):
    """Draws of x_t, in float64."""
    return DATA.marginal(sde, t).sample(n, generator=oracles.generator(5), dtype=torch.float64)


def relative_error(x, exact):
    return float((x - exact).norm() / exact.norm())


@pytest.mark.parametrize("process", PROCESSES)
def test_the_flow_is_the_closed_form_map(process):
    sde = PROCESSES[process]
    x = start(sde, sde.T)
    sampler = get_sampler("ode", rtol=1e-7, atol=1e-7, t_end=T_END, denoise=False)
    found = sampler.sample(sde, DATA.score_fn(sde), x.shape, x_init=x).x
    assert found.dtype == torch.float64
    assert relative_error(found, oracles.gaussian_flow(sde, x, sde.T, T_END, MEAN, VARIANCE)) < 1e-5


@pytest.mark.parametrize("method", ADAPTIVE)
def test_every_adaptive_method_solves_the_same_flow(method):
    sde = PROCESSES["subvp"]
    x = start(sde, sde.T, 3)
    options = {"rtol": 1e-5, "atol": 1e-5, "t_end": 0.05, "denoise": False}
    found = get_sampler("ode", method=method, **options).sample(sde, DATA.score_fn(sde), x.shape, x_init=x).x
    # Orders 2 and implicit methods accumulate some hundred times their tolerance for one step.
    assert relative_error(found, oracles.gaussian_flow(sde, x, sde.T, 0.05, MEAN, VARIANCE)) < 1e-3


@pytest.mark.parametrize("process", PROCESSES)
def test_scipy_agrees_with_dopri5(process):
    sde = PROCESSES[process]
    mixture = oracles.mixture_2d()
    x = mixture.marginal(sde, sde.T).sample(4, generator=oracles.generator(5), dtype=torch.float64)
    options = {"rtol": 1e-8, "atol": 1e-8, "t_end": 0.01, "denoise": False}
    ours, scipys = (
        get_sampler("ode", method=method, **options).sample(sde, mixture.score_fn(sde), x.shape, x_init=x)
        for method in ("dopri5", "scipy_rk45")
    )
    assert relative_error(ours.x, scipys.x) < 1e-6
    assert ours.nfe != scipys.nfe  # two implementations


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_fixed_method_has_its_order(process, method):
    sde, (order, calls) = PROCESSES[process], FIXED[method]
    t, s = 0.7, 0.3
    x = start(sde, t)
    exact = oracles.gaussian_flow(sde, x, t, s, MEAN, VARIANCE)
    sizes, found = (10, 20, 40, 80), []
    for steps in sizes:
        grid = torch.linspace(t, s, steps + 1, dtype=torch.float64)
        sampler = get_sampler("ode", method=method, grid=grid, denoise=False)
        result = sampler.sample(sde, DATA.score_fn(sde), x.shape, x_init=x)
        assert result.nfe == calls * steps
        found.append(relative_error(result.x, exact))
    # Midpoint on the user's process is of order 3: its h^3 term vanishes where alpha^2 v + sigma^2 is quadratic in t.
    order += method == "midpoint" and process == "user"
    assert oracles.slope(sizes[1:], found[1:]) == pytest.approx(-order, abs=0.3)


def test_an_adaptive_method_ignores_steps_and_grid():
    sde = PROCESSES["vp"]
    x = start(sde, sde.T)
    runs = [
        get_sampler("ode", **options).sample(sde, DATA.score_fn(sde), x.shape, x_init=x)
        for options in ({}, {"steps": 3}, {"grid": "karras"})
    ]
    assert runs[0].nfe == runs[1].nfe == runs[2].nfe
    assert torch.equal(runs[0].x, runs[1].x)
    assert torch.equal(runs[0].x, runs[2].x)


def test_a_tighter_tolerance_costs_more_and_errs_less():
    sde = PROCESSES["vp"]
    x = start(sde, sde.T)
    exact = oracles.gaussian_flow(sde, x, sde.T, T_END, MEAN, VARIANCE)
    found = []
    for tol in (1e-3, 1e-5, 1e-7, 1e-9):
        sampler = get_sampler("ode", rtol=tol, atol=tol, t_end=T_END, denoise=False)
        result = sampler.sample(sde, DATA.score_fn(sde), x.shape, x_init=x)
        found.append((result.nfe, relative_error(result.x, exact)))
    calls, misses = zip(*found, strict=True)
    assert list(calls) == sorted(set(calls))
    assert list(misses) == sorted(set(misses), reverse=True)


def test_a_bound_on_the_evaluations_is_kept_and_explained():
    sde, calls = PROCESSES["vp"], []

    def score(x, t):
        calls.append(t)
        return DATA.score(x, sde, t)

    with pytest.raises(
        IntegrationError, match=r"dopri5 is still at t = .* after max_nfe = 20 evaluations: raise max_nfe"
    ):
        get_sampler("ode", max_nfe=20).sample(sde, score, (4, *DIMS))
    assert len(calls) == 20


def test_a_score_that_is_not_finite_is_explained():
    with pytest.raises(IntegrationError, match=r"the drift is not finite at t = 1 \(evaluation 1\)"):
        get_sampler("ode").sample(PROCESSES["vp"], lambda x, t: x / 0, (4, 2))


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"unknown ODE method 'dopri6'; choose from .*; did you mean 'dopri"):
        get_sampler("ode", method="dopri6")
