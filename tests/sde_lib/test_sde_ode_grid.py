"""Fixed methods on a grid, and what is told after each step."""

import math
from itertools import pairwise

import pytest
import torch
from ode_problems import DIRECTIONS, SLACK, X0, Recorder, options, tangent, tangent_solution
from oracles import slope

from sde_lib import METHODS, integrate
from sde_lib.ode import FIXED

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
    assert slope(sizes, errors) == pytest.approx(-FIXED[method], abs=0.3)


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
