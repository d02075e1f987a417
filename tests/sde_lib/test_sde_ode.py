"""Integration: orders, tolerances, directions, batches and failures, on problems with exact solutions."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import slope

from sde_lib import METHODS, IntegrationError, integrate
from sde_lib.ode import ADAPTIVE

FIXED_ORDERS = {
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "explicit_adams": 4,
    "implicit_adams": 5,
}
FIXED = [name for name, kind in METHODS.items() if kind == "fixed"]
TOLERANT = [name for name, kind in METHODS.items() if kind != "fixed"]
DIRECTIONS = [(0.2, 1.7), (1.7, 0.2)]

# Global error over tolerance that a method may show: tolerances bound each step's error, and the global one is the sum
# over the steps. fehlberg2's estimate is of order 1, so that it takes hundreds of steps, all with errors of one sign.
SLACK = dict.fromkeys(TOLERANT, 10) | {"fehlberg2": 200}

X0 = torch.tensor([[-0.8, 0.1, 0.7], [0.3, -0.2, 0.5]], dtype=torch.float64)


def tangent(t, x):
    """Nonlinear and time-dependent; both directions are about equally well conditioned."""
    return 0.8 * torch.cos(2 * t) * (1 + x * x)


def tangent_solution(x, t0, t1):
    return torch.tan(torch.atan(x) + 0.4 * (math.sin(2 * t1) - math.sin(2 * t0)))


def relaxing(rates):
    """x' = -k (x - cos t), with a rate k for each sample, and its solution."""
    k = rates[:, None]

    def drift(t, x):
        return -k * (x - torch.cos(t))

    def solution(x, t0, t1):
        def forced(t):
            return (k * k * math.cos(t) + k * math.sin(t)) / (k * k + 1)

        return forced(t1) + (x - forced(t0)) * torch.exp(-k * (t1 - t0))

    return drift, solution


class Recorder:
    def __init__(self, fn):
        self.fn = fn
        self.times = []

    def __call__(self, t, x):
        self.times.append(float(t))
        return self.fn(t, x)


def options(method, steps=40):
    return {"steps": steps} if METHODS[method] == "fixed" else {}


# Accuracy.


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize(("t0", "t1"), DIRECTIONS)
def test_order_of_fixed_methods(method, t0, t1):
    sizes = [80, 160, 320]
    exact = tangent_solution(X0, t0, t1)
    errors = [(integrate(tangent, X0, t0, t1, method=method, steps=n).x - exact).abs().max() for n in sizes]
    assert slope(sizes, errors) == pytest.approx(-FIXED_ORDERS[method], abs=0.3)


@pytest.mark.parametrize("method", TOLERANT)
@pytest.mark.parametrize(("t0", "t1"), DIRECTIONS)
@pytest.mark.parametrize("tol", [1e-3, 1e-5])
def test_tolerance_is_kept(method, t0, t1, tol):
    exact = tangent_solution(X0, t0, t1)
    solved = integrate(tangent, X0, t0, t1, method=method, rtol=tol, atol=tol).x
    assert ((solved - exact).abs() / (1 + exact.abs())).max() < SLACK[method] * tol


@pytest.mark.parametrize("method", TOLERANT)
def test_tolerances_scale_with_the_state(method):
    """Units do not matter: 2^20 times the state and the absolute tolerance is the same computation."""
    scale = 2.0**20
    unit = integrate(tangent, X0, 0.2, 1.7, method=method, rtol=1e-3, atol=1e-4)
    scaled = integrate(
        lambda t, x: scale * tangent(t, x / scale), scale * X0, 0.2, 1.7, method=method, rtol=1e-3, atol=1e-4 * scale
    )
    assert scaled.nfe == unit.nfe
    assert torch.allclose(scaled.x, scale * unit.x, rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", [m for m in TOLERANT if m.startswith("scipy")])
def test_scipy_agrees_with_torchdiffeq(method):
    drift, _ = relaxing(torch.tensor([1.0, 3.0], dtype=torch.float64))
    ours = integrate(lambda t, x: drift(t, x) * x.tanh(), X0.abs(), 0.0, 2.0, rtol=1e-10, atol=1e-10).x
    theirs = integrate(lambda t, x: drift(t, x) * x.tanh(), X0.abs(), 0.0, 2.0, method=method, rtol=1e-7, atol=1e-7).x
    assert (ours - theirs).abs().max() < SLACK[method] * 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_there_and_back(method):
    there = integrate(tangent, X0, 0.2, 0.9, method=method, **options(method, 200)).x
    back = integrate(tangent, there, 0.9, 0.2, method=method, **options(method, 200)).x
    assert (there - X0).abs().min() > 0.05
    assert (back - X0).abs().max() < (1e-2 if method == "euler" else 1e-3 if method == "fehlberg2" else 2e-4)


# States.


@pytest.mark.parametrize("method", METHODS)
def test_tuple_state(method):
    """Parts of different shapes and laws, coupled by nothing: each has its own exact solution."""
    rates = torch.tensor([0.5, 2.0], dtype=torch.float64)
    relax, relaxed = relaxing(rates)
    images = X0[:, :2].reshape(2, 1, 2, 1)

    def drift(t, state):
        assert isinstance(state, tuple)
        return tangent(t, state[0]), relax(t, state[1])

    solution = integrate(drift, (images, X0), 0.2, 1.7, method=method, **options(method, 200))
    assert isinstance(solution.x, tuple)
    assert solution.x[0].shape == images.shape
    bound = 5e-2 if method == "euler" else SLACK.get(method, 20) * 1e-5
    assert (solution.x[0] - tangent_solution(images, 0.2, 1.7)).abs().max() < bound
    assert (solution.x[1] - relaxed(X0, 0.2, 1.7)).abs().max() < bound


@pytest.mark.parametrize("method", TOLERANT)
def test_each_part_has_its_tolerance(method):
    relax, relaxed = relaxing(torch.tensor([4.0, 7.0], dtype=torch.float64))

    def drift(t, state):
        return 0 * state[0], relax(t, state[1])

    tight = integrate(drift, (X0, X0), 0.0, 2.0, method=method, rtol=(1e-2, 1e-5), atol=(1e-2, 1e-5))
    loose = integrate(drift, (X0, X0), 0.0, 2.0, method=method, rtol=(1e-5, 1e-2), atol=(1e-5, 1e-2))
    assert (tight.x[1] - relaxed(X0, 0.0, 2.0)).abs().max() < SLACK[method] * 1e-5
    if method in ADAPTIVE:  # scipy's take the tightest tolerance for all parts
        assert loose.nfe < tight.nfe


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_and_time_keep_the_state_s_dtype(method, dtype):
    seen = set()

    def drift(t, x):
        seen.add((t.dtype, x.dtype, t.shape, x.shape))
        return tangent(t, x)

    solution = integrate(drift, X0.to(dtype), 0.2, 1.7, method=method, rtol=1e-4, atol=1e-4, **options(method))
    assert seen == {(dtype, dtype, torch.Size([]), X0.shape)}
    assert solution.x.dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_time_runs_in_float64_for_a_float32_state(method):
    """The whole interval lies between two neighbouring numbers of float32."""
    start = torch.zeros(1, 1)
    end = integrate(lambda t, x: 1e9 * torch.ones_like(x), start, 1.0, 1.0 + 1e-9, method=method, **options(method)).x
    assert float(end) == pytest.approx(1.0, rel=1e-5)


# Batches: a sample meets the tolerance whatever else is in its batch.


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("companions", ["stiff", "at rest"])
def test_a_sample_meets_the_tolerance_in_any_batch(method, companions):
    """999 samples at rest would hide one sample's error in a mean over the batch, by a factor of sqrt(1000)."""
    tol = 1e-5
    rate = torch.tensor([3.0], dtype=torch.float64)
    others = {"stiff": torch.tensor([60.0]), "at rest": torch.zeros(999)}[companions].double()
    start = torch.full((1, 2), 2.0, dtype=torch.float64)
    drift_alone, solution = relaxing(rate)
    alone = integrate(drift_alone, start, 0.0, 2.0, method=method, rtol=tol, atol=tol).x
    drift_all, _ = relaxing(torch.cat([rate, others]))
    batch = torch.cat([start, start.expand(len(others), 2)])
    together = integrate(drift_all, batch, 0.0, 2.0, method=method, rtol=tol, atol=tol).x[:1]
    exact = solution(start, 0.0, 2.0)
    worst_alone = (alone - exact).abs().max()
    assert worst_alone < SLACK[method] * tol
    assert (together - exact).abs().max() <= max(1.1 * worst_alone, tol)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_companions_at_rest_change_nothing_at_all(method):
    rates = torch.tensor([3.0] + [0.0] * 50, dtype=torch.float64)
    start = torch.full((51, 2), 2.0, dtype=torch.float64)
    alone = integrate(relaxing(rates[:1])[0], start[:1], 0.0, 2.0, method=method)
    together = integrate(relaxing(rates)[0], start, 0.0, 2.0, method=method)
    assert together.nfe == alone.nfe
    assert torch.allclose(together.x[:1], alone.x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_parts_at_rest_change_nothing_at_all(method):
    """The worst part decides, not a mean over the parts."""
    drift, _ = relaxing(torch.tensor([3.0, 4.0], dtype=torch.float64))
    alone = integrate(drift, X0, 0.0, 2.0, method=method)
    idle = (torch.zeros(2, 5, dtype=torch.float64),) * 7
    together = integrate(
        lambda t, state: (*(0 * x for x in idle), drift(t, state[-1])), (*idle, X0), 0.0, 2.0, method=method
    )
    assert together.nfe == alone.nfe
    assert torch.allclose(together.x[-1], alone.x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_dimensions_of_one_sample_share_an_rms(method):
    """Copying every dimension leaves a root mean square as it is, and hence the steps."""
    drift, _ = relaxing(torch.tensor([3.0], dtype=torch.float64))
    narrow = integrate(drift, torch.tensor([[2.0, 0.5]]).double(), 0.0, 2.0, method=method)
    wide = integrate(drift, torch.tensor([[2.0, 0.5]]).double().repeat(1, 40), 0.0, 2.0, method=method)
    assert wide.nfe == narrow.nfe
    assert torch.allclose(wide.x[:, :2], narrow.x, rtol=1e-12, atol=0)


# Times and counts.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("t0", "t1"), [(0.1, 0.9), (0.9, 0.1)])
@pytest.mark.parametrize("drift", [tangent, lambda t, x: 1e-6 * t * x, lambda t, x: 0 * x], ids=["usual", "slow", "0"])
def test_never_evaluates_outside_the_interval_and_counts_every_call(method, t0, t1, drift):
    """The slow drift makes torchdiffeq try a first step of 1e5."""
    recorder = Recorder(drift)
    solution = integrate(recorder, X0, t0, t1, method=method, **options(method))
    assert min(recorder.times) >= 0.1
    assert max(recorder.times) <= 0.9
    assert solution.nfe == len(recorder.times) > 0


@pytest.mark.parametrize(("method", "calls"), [("euler", 1), ("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4)])
def test_nfe_of_fixed_methods(method, calls):
    recorder = Recorder(tangent)
    assert integrate(recorder, X0, 0.0, 1.0, method=method, steps=10).nfe == 10 * calls == len(recorder.times)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_steps_are_equal_in_float64(dtype):
    """Read off the states, as time itself arrives in the state's dtype: x' = 1 adds up the steps from 0."""
    recorder = Recorder(tangent)
    integrate(recorder, X0, 1.0, 0.0, method="euler", steps=10)
    assert recorder.times == pytest.approx([1 - k / 10 for k in range(10)], abs=1e-15)
    reached = []
    start = torch.zeros(1, 1, dtype=dtype)
    integrate(
        lambda t, x: torch.ones_like(x),
        start,
        0.0,
        1.0,
        method="euler",
        steps=10,
        on_step=lambda t, x: reached.append(t),
    )
    assert reached == pytest.approx([k / 10 for k in range(1, 11)], abs=1e-15)


# A grid, and what is told after each step.

GRID = [0.2, 0.23, 0.41, 0.77, 0.9]
ONE_STEP = [name for name in FIXED if not name.endswith("_adams")]


@pytest.mark.parametrize("grid", [GRID, GRID[::-1]], ids=["up", "down"])
def test_euler_steps_over_a_grid(grid):
    """x' = t x by Euler over unequal steps is the product of 1 + h t."""
    recorder, reached = Recorder(lambda t, x: t * x), []
    options = {"method": "euler", "grid": grid, "on_step": lambda t, x: reached.append((t, x))}
    solution = integrate(recorder, X0, grid[0], grid[-1], **options)
    assert recorder.times == grid[:-1]
    factors = [1 + (b - a) * a for a, b in pairwise(grid)]
    assert [t for t, _ in reached] == grid[1:]
    for k, (_, x) in enumerate(reached):
        torch.testing.assert_close(x, math.prod(factors[: k + 1]) * X0, rtol=1e-14, atol=0)
    assert torch.equal(reached[-1][1], solution.x)


@pytest.mark.parametrize("method", ONE_STEP)
@pytest.mark.parametrize(("t0", "t1"), DIRECTIONS)
def test_one_step_methods_keep_their_order_on_unequal_steps(method, t0, t1):
    exact, sizes, errors = tangent_solution(X0, t0, t1), [80, 160, 320], []
    for n in sizes:
        grid = [t0 + (t1 - t0) * (k / n) ** 1.5 for k in range(n)] + [t1]
        errors.append((integrate(tangent, X0, t0, t1, method=method, grid=grid).x - exact).abs().max())
    assert slope(sizes, errors) == pytest.approx(-FIXED_ORDERS[method], abs=0.3)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize(("t0", "t1"), [(0.25, 0.75), (0.75, 0.25)])
def test_a_grid_of_equal_steps_is_that_many_steps(method, t0, t1):
    steps = integrate(tangent, X0, t0, t1, method=method, steps=32)
    grid = integrate(tangent, X0, t0, t1, method=method, grid=[t0 + (t1 - t0) * k / 32 for k in range(33)])
    assert grid.nfe == steps.nfe
    assert torch.equal(grid.x, steps.x)


@pytest.mark.parametrize("grid", [[0.1, 0.9], [0.0, 0.5], [1.0, 0.0]])
def test_a_grid_between_other_times_is_refused(grid):
    with pytest.raises(ValueError, match=rf"a grid from {grid[0]} to {grid[-1]} does not lead from t0 = 0.0 to t1 = 1"):
        integrate(tangent, X0, 0.0, 1.0, method="rk4", grid=grid)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("t0", "t1"), DIRECTIONS)
def test_every_step_is_told_with_the_solution_there(method, t0, t1):
    """The states told solve the equation at the times told, for plain states and for tuples of them."""
    told = []
    loose = 5e-2 if method == "euler" else SLACK.get(method, 20) * 1e-5
    solution = integrate(
        tangent, X0, t0, t1, method=method, on_step=lambda *step: told.append(step), **options(method, 200)
    )
    times = [t for t, _ in told]
    assert times[-1] == t1
    assert all((b - a) * (t1 - t0) > 0 for a, b in pairwise([t0, *times]))
    assert len(times) == {"fixed": 200, "scipy": 1}.get(METHODS[method], len(times))
    assert len(times) > 3 or METHODS[method] == "scipy"
    assert torch.equal(told[-1][1], solution.x)
    for t, x in told:
        exact = tangent_solution(X0, t0, t)
        assert ((x - exact).abs() / (1 + exact.abs())).max() < loose  # as in test_tolerance_is_kept


@pytest.mark.parametrize("method", ["dopri5", "rk4", "scipy_rk45"])
def test_a_tuple_is_told_as_a_tuple(method):
    told = []
    integrate(
        lambda t, state: tuple(tangent(t, x) for x in state),
        (X0, X0[:, :1]),
        0.2,
        1.7,
        method=method,
        on_step=lambda *step: told.append(step),
        **options(method),
    )
    for t, state in told:
        assert isinstance(state, tuple)
        assert [x.shape for x in state] == [X0.shape, (2, 1)]
        assert (state[1] - tangent_solution(X0[:, :1], 0.2, t)).abs().max() < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_being_told_changes_nothing(method):
    told = integrate(tangent, X0, 0.2, 1.7, method=method, on_step=lambda t, x: None, **options(method))
    plain = integrate(tangent, X0, 0.2, 1.7, method=method, **options(method))
    assert told.nfe == plain.nfe
    assert torch.equal(told.x, plain.x)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_lands_on_breakpoints(method, t0, t1):
    """x' is linear in t between its kinks: a method of order 2 or more that steps onto them is exact, any other not."""
    a, b = 0.3141, 0.7272

    def integral(t):
        return -20 * (t - a) * abs(t - a) + 10 * (t - b) * abs(t - b)

    recorder = Recorder(lambda t, x: (-40 * (t - a).abs() + 20 * (t - b).abs()) * torch.ones_like(x))
    kinked = integrate(recorder, X0, t0, t1, method=method, rtol=1e-3, atol=1e-3, breakpoints=(b, a))
    blind = integrate(recorder.fn, X0, t0, t1, method=method, rtol=1e-3, atol=1e-3)
    exact = X0 + integral(t1) - integral(t0)
    # torchdiffeq evaluates the end of a step at the neighbouring float before it
    assert all(min(abs(t - kink) for t in recorder.times) < 1e-15 for kink in (a, b))
    assert (kinked.x - exact).abs().max() < 1e-12
    assert (blind.x - exact).abs().max() > 1e-9


@pytest.mark.parametrize("method", ADAPTIVE)
def test_breakpoints_outside_the_interval_are_ignored(method):
    plain = integrate(tangent, X0, 0.2, 0.8, method=method)
    other = integrate(tangent, X0, 0.2, 0.8, method=method, breakpoints=(0.0, 0.2, 0.8, 0.9))
    assert other.nfe == plain.nfe
    assert torch.equal(other.x, plain.x)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_warns(method, recwarn):
    """torchdiffeq hands scipy's solvers an option that most of them have not, and they say so."""
    integrate(tangent, X0, 0.2, 0.9, method=method, **options(method))
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_interval_costs_nothing(method):
    recorder = Recorder(tangent)
    solution = integrate(recorder, X0, 0.4, 0.4, method=method, **options(method))
    assert solution.nfe == 0 == len(recorder.times)
    assert torch.equal(solution.x, X0)


# Failures.


def test_unknown_method():
    with pytest.raises(ValueError, match=r"unknown ODE method 'dopri55'; choose from .*'rk4'.*; did you mean 'dopri5'"):
        integrate(tangent, X0, 0.0, 1.0, method="dopri55")


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("steps", [None, 0, -3])
def test_fixed_methods_need_steps(method, steps):
    with pytest.raises(ValueError, match=rf"method '{method}' has fixed steps: give steps, at least 1 \(got {steps}\)"):
        integrate(tangent, X0, 0.0, 1.0, method=method, steps=steps)


@pytest.mark.parametrize("method", METHODS)
def test_max_nfe(method):
    recorder = Recorder(tangent)
    with pytest.raises(IntegrationError, match=rf"{method} is still at t = 0.* after max_nfe = 9 .*raise max_nfe, or"):
        integrate(recorder, X0, 0.0, 1.0, method=method, max_nfe=9, rtol=1e-6, atol=1e-6, **options(method))
    assert len(recorder.times) == 9


@pytest.mark.parametrize("method", METHODS)
def test_enough_nfe_is_enough(method):
    needed = integrate(tangent, X0, 0.0, 1.0, method=method, **options(method)).nfe
    assert integrate(tangent, X0, 0.0, 1.0, method=method, max_nfe=needed, **options(method)).nfe == needed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_drift_that_is_not_finite(method, bad):
    def drift(t, x):
        return torch.where(t > 0.5, bad, 1.0) * x

    message = rf"{method}: the drift is not finite at t = 0\.[5-9]\d* \(evaluation \d+\): check the score there"
    with pytest.raises(IntegrationError, match=message):
        integrate(drift, X0, 0.0, 1.0, method=method, **options(method))


@pytest.mark.parametrize("method", METHODS)
def test_any_part_that_is_not_finite_is_seen(method):
    def drift(t, state):
        return tangent(t, state[0]), torch.where(t > 0.5, math.nan, 1.0) * state[1]

    with pytest.raises(IntegrationError, match="the drift is not finite"):
        integrate(drift, (X0, X0), 0.0, 1.0, method=method, **options(method))


@pytest.mark.parametrize("method", ["dopri5", "scipy_rk45"])
def test_a_pole_ends_in_an_explanation(method):
    """x' = x^2 from 1 has a pole at t = 1: steps shrink until they underflow."""
    message = rf"{method} gave up at t = (1\b|0\.9999)\S* after \d+ evaluations \(.*raise rtol and atol, or use float64"
    with pytest.raises(IntegrationError, match=message):
        integrate(lambda t, x: x * x, torch.ones(1, 1, dtype=torch.float64), 0.0, 2.0, method=method)
