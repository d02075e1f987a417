"""Integration: orders, tolerances, directions, batches and counts, on problems with exact solutions."""

import math

import pytest
import torch
from ode_problems import DIRECTIONS, SLACK, TOLERANT, X0, Recorder, options, tangent, tangent_solution
from oracles import slope

from sde_lib import METHODS, integrate
from sde_lib.ode import ADAPTIVE, FIXED


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


# Accuracy.


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize(("t0", "t1"), DIRECTIONS)
def test_order_of_fixed_methods(method, t0, t1):
    sizes = [80, 160, 320]
    exact = tangent_solution(X0, t0, t1)
    errors = [(integrate(tangent, X0, t0, t1, method=method, steps=n).x - exact).abs().max() for n in sizes]
    assert slope(sizes, errors) == pytest.approx(-FIXED[method], abs=0.3)


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


# Integrals along the path


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("t0", "t1"), DIRECTIONS)
def test_stages_without_weight_may_do_without_the_integral(method, t0, t1):
    """A slope of 7 in place of the integrand changes no bit, and is taken at just the stages that the method leaves."""
    stages = {"dopri5": (1, 6), "dopri8": (4, 13)}.get(method, (0, 1))  # without weight, of those of a step

    def whole(t, state):
        return tangent(t, state[0]), torch.cos(t) * state[0]

    alone = Recorder(lambda t, state: (tangent(t, state[0]), torch.full_like(state[1], 7.0)))
    start = (X0, torch.zeros_like(X0))
    plain = integrate(whole, start, t0, t1, method=method, **options(method))
    light = integrate(whole, start, t0, t1, method=method, drift_alone=alone, **options(method))
    assert all(torch.equal(a, b) for a, b in zip(plain.x, light.x, strict=True))
    assert light.nfe == plain.nfe
    assert len(alone.times) * stages[1] == (plain.nfe - 2) * stages[0]  # but for two that find the first step
