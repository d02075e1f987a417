"""Time grids: their ends, their spacing, and the messages for wrong ones."""

import math
import re

import numpy as np
import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import GRIDS, SAMPLERS, get_sampler, sampler_options, time_grid
from sde_lib import EDMSDE, VPSDE

EQUAL = {
    "uniform": lambda sde, t: t,
    "quadratic": lambda sde, t: t.sqrt(),
    "log_snr": lambda sde, t: sde.log_snr(t),
    "karras": lambda sde, t: (sde.sigma(t) / sde.log_alpha(t).exp()) ** (1 / 7),
    "asinh": lambda sde, t: torch.asinh(sde.log_snr(t) / 2 / 2),
}
"""What each grid divides into equal steps."""


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_grid_falls_from_one_end_to_the_other_exactly(process, grid):
    for steps in (1, 2, 37, 1000):
        times = time_grid(PROCESSES[process], grid, steps, 1e-3)
        assert times.dtype == torch.float64
        assert times.shape == (steps + 1,)
        assert times[0] == 1.0
        assert times[-1] == 1e-3
        assert (times.diff() < 0).all()
    inner = time_grid(PROCESSES[process], grid, 5, 0.2, t_start=0.7)
    assert inner[0] == 0.7
    assert inner[-1] == 0.2
    assert (inner.diff() < 0).all()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_grid_has_equal_steps_in_its_own_measure(process, grid):
    sde = PROCESSES[process]
    steps = EQUAL[grid](sde, time_grid(sde, grid, 50, 1e-3)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(50), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_grid_of_half_the_steps_is_every_second_time(process, grid):
    sde = PROCESSES[process]
    fine, coarse = (time_grid(sde, grid, steps, 1e-3) for steps in (80, 40))
    torch.testing.assert_close(fine[::2], coarse, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grid", ["uniform", "karras"])
def test_on_edm_the_grid_is_karras_formula(grid):
    """arXiv 2206.00364, equation 5, from sigma_max = 80 to sigma_min = 0.002 with rho = 7."""
    n, low, high, rho = 18, 0.002, 80.0, 7
    i = np.arange(n)
    sigmas = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    sde = EDMSDE()
    torch.testing.assert_close(
        sde.sigma(time_grid(sde, grid, n - 1, 0.0)), torch.from_numpy(sigmas), rtol=1e-10, atol=0
    )


def test_equal_steps_of_the_log_snr_are_a_geometric_series_of_noise_on_ve():
    sde = PROCESSES["ve"]
    sigmas = sde.sigma(time_grid(sde, "log_snr", 9, 0.0))
    torch.testing.assert_close(sigmas, torch.logspace(math.log10(50), -2, 10, dtype=torch.float64))


@pytest.mark.parametrize("rho", [1.0, 3.0, 20.0])
@pytest.mark.parametrize("process", PROCESSES)
def test_rho_is_the_exponent_of_the_karras_grid(process, rho):
    """Equal steps in (sigma / alpha)^(1 / rho): in sigma / alpha itself for rho = 1."""
    sde = PROCESSES[process]
    times = get_sampler("ddim", grid="karras", rho=rho, steps=30, t_end=0.01).time_grid(sde)
    steps = ((sde.sigma(times) / sde.log_alpha(times).exp()) ** (1 / rho)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(30), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("text", ["1, 0.5, 0.01", "1,0.5,0.01,", " 1.0 ,5e-1, 1e-2"])
def test_times_may_be_given_as_text(text):
    assert time_grid(VPSDE(), text, 500, 0.3).tolist() == [1.0, 0.5, 0.01]
    assert get_sampler("heun", grid=text, steps=3).time_grid(VPSDE()).tolist() == [1.0, 0.5, 0.01]


@pytest.mark.parametrize(
    "times", [[1.0, 0.9, 0.2, 0.01], (0.5, 0.25), np.array([1.0, 0.1]), torch.tensor([0.8, 0.3, 0.0])]
)
def test_explicit_times_are_taken_as_they_are(times):
    found = time_grid(VPSDE(), times, 500, 0.3)
    assert found.dtype == torch.float64
    assert found.tolist() == [float(t) for t in times]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("ode", "adaptive_sde")])
def test_a_sampler_visits_the_explicit_times(sampler):
    visited = []
    x = torch.ones(2, 3)
    run = get_sampler(sampler, grid=[0.9, 0.5, 0.45, 0.1], steps=77)
    run.sample(VPSDE(), lambda x, t: -x, (2, 3), x_init=x, callback=lambda p: visited.append(p.t))
    assert visited == [0.5, 0.45, 0.1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_and_grid_of_none_are_the_methods_own(sampler):
    """Those that a plain ``get_sampler(name)`` takes; a given one replaces either alone."""
    kind = SAMPLERS[sampler]
    given, plain = get_sampler(sampler, steps=None, grid=None), get_sampler(sampler)
    assert (given.steps, given.grid) == (plain.steps, plain.grid) == (kind.natural_steps, kind.natural_grid)
    assert get_sampler(sampler, steps=7).grid == kind.natural_grid
    assert get_sampler(sampler, grid="uniform").steps == kind.natural_steps
    ends = sampler in ("ode", "adaptive_sde")  # adaptive by default: they step as they see fit
    times = plain.time_grid(VPSDE())
    rho = 3.0 if sampler == "deis" else None  # which widens the dense part of its grid for its fourth point
    natural = time_grid(VPSDE(), kind.natural_grid, kind.natural_steps, 1e-3, rho=rho)
    assert torch.equal(times, natural[[0, -1] if ends else ...])
    assert plain.step_count(VPSDE()) == (None if ends else kind.natural_steps)


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_adams_methods_refuse_unequal_steps(method):
    """Their coefficients are those of equal ones."""
    for grid in ("karras", "log_snr", "quadratic", [1.0, 0.5, 0.1]):
        sampler = get_sampler("ode", method=method, steps=9, grid=grid)
        with pytest.raises(ValueError, match=rf"method '{method}' needs equal steps: give grid 'uniform', or use deis"):
            sampler.sample(VPSDE(), lambda x, t: -x, (2, 2))
    assert len(get_sampler("ode", method=method, steps=9, grid=[0.9, 0.6, 0.3]).time_grid(VPSDE())) == 3


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("unifrom", r"unknown time grid 'unifrom'; choose from .*'karras'.*; did you mean 'uniform'"),
        ([0.5, 1.0], r"at least two times that decrease within \[0, 1\]; got 2 of shape \(2,\): 0.5, 1$"),
        ([1.0, 0.5, 0.5], r"got 3 of shape \(3,\): 1, 0.5, 0.5$"),
        ([0.5], r"got 1 of shape \(1,\)"),
        ([], r"got 0 of shape"),
        ([[1.0, 0.5]], r"got 2 of shape \(1, 2\)"),
        ([1.1, 0.5], r"got .*: 1.1, 0.5"),
        ([1.0, -0.1], r"got .*: 1, -0.1"),
        ([1.0, float("nan")], r"got .*: 1, nan"),
        ("1, 0.5, 0.7", r"at least two times that decrease within \[0, 1\]; got 3 of shape \(3,\).*: 1, 0.5, 0.7$"),
        ("1, half", r"the times '1, half' are not numbers; give such as '1, 0.5, 0.01'"),
    ],
)
def test_wrong_grids_are_explained(grid, message):
    with pytest.raises(ValueError, match=message):
        get_sampler("ancestral", grid=grid).sample(VPSDE(), lambda x, t: -x, (2, 2))


@pytest.mark.parametrize("steps", [0, -3, True, 2.5, "5", 1_000_001, np.float64(5), np.bool_(True)])
def test_a_wrong_number_of_steps_is_explained(steps):
    message = f"steps is {steps!r}; a sampler needs a whole number of at least 1, at most 1,000,000"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        get_sampler("ancestral", steps=steps)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        time_grid(VPSDE(), "uniform", steps, 1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_whole_numbers_of_numpy_are_whole_numbers(sampler):
    given = {"steps": 7} | ({"order": 2} if "order" in sampler_options(sampler) else {})
    plain, other = (get_sampler(sampler, **{k: kind(v) for k, v in given.items()}) for kind in (int, np.int64))
    assert repr(plain) == repr(other)
    assert torch.equal(plain.time_grid(VPSDE()), other.time_grid(VPSDE()))
    assert torch.equal(time_grid(VPSDE(), "uniform", np.int64(7), 0.1), time_grid(VPSDE(), "uniform", 7, 0.1))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_wrong_end_is_explained_in_one_short_line(sampler, grid):
    for t_end in (1.0, 2.0, -0.1, float("nan")):
        message = rf"^t_end is {t_end!r}; it must lie in \[0, 1\), where the grid begins$"
        with pytest.raises(ValueError, match=message):
            get_sampler(sampler, grid=grid, t_end=t_end).sample(VPSDE(), lambda x, t: -x, (2, 2))


def test_equal_steps_of_an_infinite_log_snr_are_refused():
    with pytest.raises(ValueError, match=r"t_end is 0, where VPSDE.* has no noise: grid 'log_snr' needs a t_end above"):
        time_grid(VPSDE(), "log_snr", 10, 0.0)


# Samplers by name.


def test_an_unknown_sampler_is_explained():
    with pytest.raises(
        ValueError, match=r"unknown sampler 'ancestrall'; choose from .*'pc'.*; did you mean 'ancestral'"
    ):
        get_sampler("ancestrall")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_unknown_option_is_explained(sampler):
    shared = "steps, grid, t_end, t_start, denoise, rho, threshold, limit, quantile"
    with pytest.raises(TypeError, match=rf"sampler '{sampler}' has no option step, sigma; it takes .*{shared}"):
        get_sampler(sampler, step=3, sigma=1.0, steps=5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_option_of_a_sampler_is_one_that_it_takes(sampler):
    options = sampler_options(sampler)
    given = {"steps": 7, "grid": "karras", "t_end": 0.01, "t_start": 0.7, "denoise": False, "rho": 5.0}
    given |= {"threshold": "clip", "limit": 2.0, "quantile": 0.9}
    assert set(given) <= set(options)
    built = get_sampler(sampler, **given)
    assert type(built) is SAMPLERS[sampler]
    assert {name: getattr(built, name) for name in given} == given
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'stepz'"):
        SAMPLERS[sampler](stepz=3)


@pytest.mark.parametrize("wrong", [{"limit": 0.0}, {"rho": -1.0}, {"quantile": 0.0}, {"quantile": 1.1}], ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_shared_options_out_of_range_are_explained(sampler, wrong):
    with pytest.raises(ValueError, match=r"give limit and rho above 0, quantile in \(0, 1\]"):
        get_sampler(sampler, **wrong)


def test_options_of_an_unknown_sampler_are_refused():
    with pytest.raises(ValueError, match=r"unknown sampler 'nope'"):
        sampler_options("nope")


def test_the_options_of_pc_are_listed_own_first():
    assert sampler_options("pc")[:5] == ("predictor", "corrector", "snr", "corrector_steps", "corrector_first")


def test_options_of_pc_reach_its_predictor():
    times = []

    def score(x, t):
        times.append(float(t[0]))
        return -x

    grid = [0.9, 0.4, 0.2]
    options = {"predictor": "ancestral", "corrector_steps": 1, "denoise": False}
    get_sampler("pc", grid=grid, **options).sample(VPSDE(), score, (2, 2), generator=oracles.generator())
    assert times == pytest.approx([0.9, 0.4, 0.4, 0.2])
