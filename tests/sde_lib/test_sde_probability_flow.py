"""The probability-flow ODE in its own variables: the field, the clock, exact maps, pieces, and what is refused."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import PROCESSES, gaussian, gaussian_flow, generator, mixture, mixture_2d

from sde_lib import VESDE, VPSDE, IntegrationError, integrate, log_likelihood, transport
from sde_lib.probability_flow import Clock
from sde_lib.sde import match_dims

every_process = pytest.mark.parametrize("name", PROCESSES)
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def scale(sde, t):
    """n = sqrt(alpha^2 + sigma^2), float."""
    return float(torch.hypot(*sde.marginal(torch.tensor(t, dtype=torch.float64))))


def states(sde, law, t, n=4):
    return law.marginal(sde, t).sample(n, generator=generator(1), dtype=torch.float64)


def n_and_u(sde, t):
    """(n, u, n'/n, u') at a time, the derivatives by autograd of their definitions."""
    t = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    alpha, sigma = sde.marginal(t)
    n, u = torch.hypot(alpha, sigma), torch.asinh(sigma / alpha)
    (dn,) = torch.autograd.grad(n, t, retain_graph=True)
    (du,) = torch.autograd.grad(u, t)
    return n.detach(), u.detach(), dn / n.detach(), du


def caught(monkeypatch, module, call):
    """The field and the ends that a function hands to ``integrate``."""
    seen = {}

    def integrate(fn, x, t0, t1, **options):
        seen.update(fn=fn, x=x, t0=t0, t1=t1, options=options)
        raise StopIteration

    monkeypatch.setattr(f"sde_lib.{module}.integrate", integrate)
    with pytest.raises(StopIteration):
        call()
    return seen


# The field and the clock.


@every_process
@pytest.mark.parametrize("t", [1e-4, 0.03, 0.4, 0.9, 0.9985])
def test_the_field_is_the_chain_rule(name, t, monkeypatch):
    """dy/du = (x'/n - y n'/n) / u' with x' = f x - g^2 s / 2."""
    sde, law = PROCESSES[name], mixture((3, 2))
    score_fn, x = law.score_fn(sde), states(sde, law, t)
    field = caught(monkeypatch, "probability_flow", lambda: transport(sde, score_fn, x, sde.t_min, sde.T))["fn"]
    n, u, dn, du = n_and_u(sde, t)
    drift, _ = sde.reverse(score_fn, probability_flow=True).sde(x, t)
    expected = (drift / n - (x / n) * dn) / du
    torch.testing.assert_close(field(u, x / n), expected, rtol=1e-7, atol=1e-9)


@every_process
@pytest.mark.parametrize("t", [1e-4, 0.03, 0.4, 0.9, 0.9985])
def test_the_divergence_is_the_chain_rule(name, t, monkeypatch):
    """div_y (dy/du) = (div_x x' - D n'/n) / u'; the trace of the drift's Jacobian by autograd."""
    sde, law = PROCESSES[name], mixture((3, 2))
    score_fn, x = law.score_fn(sde), states(sde, law, t)
    field = caught(monkeypatch, "likelihood", lambda: log_likelihood(sde, score_fn, x, divergence="exact"))["fn"]
    n, u, dn, du = n_and_u(sde, t)
    ode = sde.reverse(score_fn, probability_flow=True)
    jacobians = torch.autograd.functional.jacobian(lambda x: ode.sde(x, t)[0].sum(0).flatten(), x).reshape(6, 4, 6)
    trace = torch.einsum("ibi->b", jacobians)
    dy, change = field(u, (x / n, torch.zeros(4, 1).double()))
    torch.testing.assert_close(dy, (ode.sde(x, t)[0] / n - (x / n) * dn) / du, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(change[:, 0], (trace - 6 * dn) / du, rtol=1e-7, atol=1e-7)


@every_process
def test_the_ends_of_the_clock(name, monkeypatch):
    sde, law = PROCESSES[name], mixture((3, 2))
    x = states(sde, law, 0.7)
    seen = caught(monkeypatch, "probability_flow", lambda: transport(sde, law.score_fn(sde), x, 0.7, 0.2))
    for end, t in ((seen["t0"], 0.7), (seen["t1"], 0.2)):
        alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
        assert end == pytest.approx(math.asinh(float(sigma / alpha)), rel=1e-12)
    torch.testing.assert_close(seen["x"], x / scale(sde, 0.7), rtol=1e-14, atol=0)


@every_process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_clock_and_back(name, dtype):
    """Time and the coefficients at u, also for u in float32, whose ends are the ends of time exactly."""
    sde = PROCESSES[name]
    clock = Clock(sde, sde.T, sde.t_min)
    for t in (2e-5, 1e-3, 0.1, 0.5, 0.9, 0.999):
        alpha, sigma = (float(v) for v in sde.marginal(torch.tensor(t, dtype=torch.float64)))
        u = torch.tensor(math.asinh(sigma / alpha), dtype=dtype)
        place = clock.place(u)
        if dtype == torch.float64:
            assert float(place.t) == pytest.approx(t, rel=1e-8, abs=1e-13)
            assert clock.time(float(u)) == float(place.t)
        near = {"rel": 3e-6 if dtype == torch.float32 else 1e-9}  # sigma / alpha = sinh u magnifies u's rounding by u
        assert float(place.sigma) == pytest.approx(sigma, **near)
        assert float(place.norm) == pytest.approx(math.hypot(alpha, sigma), **near)
        assert float(place.tanh) == pytest.approx(sigma / math.hypot(alpha, sigma), **near)
    assert float(clock.place(torch.tensor(clock.u0, dtype=dtype)).t) == sde.T
    assert float(clock.place(torch.tensor(clock.u1, dtype=dtype)).t) == sde.t_min


# Exact maps.


@every_process
@pytest.mark.parametrize("direction", ["encode", "decode", "between"])
def test_a_gaussian_in_closed_form(name, direction):
    sde = PROCESSES[name]
    law, mean, variance = gaussian((3, 2))
    t, s = {"encode": (sde.t_min, sde.T), "decode": (sde.T, sde.t_min), "between": (0.3, 0.6)}[direction]
    x = states(sde, law, t)
    exact = gaussian_flow(sde, x, t, s, mean, variance)
    for options, bound in (({}, 2e-4), (TIGHT, 2e-7)):  # the tolerance holds in each of about 20 steps
        solved = transport(sde, law.score_fn(sde), x, t, s, **options)
        error = float((solved.x - exact).abs().max()) / scale(sde, s)
        print(f"{name} {direction} {options}: {error:.1e}, {solved.nfe}")
        assert error < bound


@every_process
@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
def test_there_and_back(name, shape):
    sde, law = PROCESSES[name], mixture_2d() if shape == (2,) else mixture(shape)
    x = states(sde, law, sde.t_min)
    for options, bound in (({}, 1e-3), (TIGHT, 1e-6)):  # decoding magnifies an error of the code, about 30 times
        there = transport(sde, law.score_fn(sde), x, sde.t_min, sde.T, **options)
        back = transport(sde, law.score_fn(sde), there.x, sde.T, sde.t_min, **options)
        error = float((back.x - x).abs().max())
        print(f"{name} {shape} {options}: {error:.1e}")
        assert error < bound
    assert float((there.x / scale(sde, sde.T) - x).abs().max()) > 0.1


@every_process
def test_in_pieces_as_in_one(name):
    sde, law = PROCESSES[name], mixture((3, 2))
    x = states(sde, law, sde.t_min)
    pieces = x
    times = [sde.t_min, 0.05, 0.4, 0.97, sde.T]
    for t, s in pairwise(times):
        pieces = transport(sde, law.score_fn(sde), pieces, t, s, **TIGHT).x
    whole = transport(sde, law.score_fn(sde), x, sde.t_min, sde.T, **TIGHT).x
    assert float((pieces - whole).abs().max()) / scale(sde, sde.T) < 1e-7


@every_process
def test_the_code_of_log_likelihood(name):
    """In fixed steps it is the same computation; at a tolerance, the same map."""
    sde, law = PROCESSES[name], mixture((3, 2))
    x, score_fn = states(sde, law, sde.t_min), law.score_fn(sde)
    fixed = {"method": "rk4", "steps": 30}
    ours = transport(sde, score_fn, x, sde.t_min, sde.T, **fixed).x
    torch.testing.assert_close(log_likelihood(sde, score_fn, x, **fixed).z, ours, rtol=1e-12, atol=1e-12)
    z = log_likelihood(sde, score_fn, x, divergence="exact", **TIGHT).z
    ours = transport(sde, score_fn, x, sde.t_min, sde.T, **TIGHT).x
    assert float((z - ours).abs().max()) / scale(sde, sde.T) < 1e-7


# Costs and side effects.


@every_process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluations_stay_inside_and_are_counted(name, dtype):
    sde, law = PROCESSES[name], mixture((3, 2))
    score_fn, times = law.score_fn(sde), []

    def counted(x, t):
        assert x.dtype == t.dtype == dtype
        assert t.shape == (4,)
        assert not torch.is_grad_enabled()
        times.append(float(t[0]))
        return score_fn(x, t)

    low, high = (float(torch.tensor(t, dtype=dtype)) for t in (sde.t_min, sde.T))
    x = states(sde, law, sde.t_min).to(dtype)
    for t, s in ((sde.t_min, sde.T), (sde.T, sde.t_min)):
        times.clear()
        solved = transport(sde, counted, x, t, s, rtol=1e-4, atol=1e-4)
        assert solved.nfe == len(times) > 10
        # torchdiffeq evaluates the end of a step at the neighbouring float before it
        assert low <= min(times) <= low + 1e-7
        assert 0.999999 * high <= max(times) <= high
        assert solved.x.dtype == dtype
        assert not solved.x.requires_grad


def test_no_way_at_all():
    x = torch.randn(3, 2, dtype=torch.float64)
    solved = transport(VPSDE(), mixture_2d().score_fn(VPSDE()), x, 0.3, 0.3)
    torch.testing.assert_close(solved.x, x, rtol=1e-15, atol=0)
    assert solved.nfe == 0


# Errors.


BAD = [
    (torch.tensor([[0.1, math.nan], [math.inf, 0.0]]), r"2 of the 4 values of x are not finite \(nan or inf\)"),
    (torch.zeros(2, 2, dtype=torch.int64), r"x has dtype torch.int64; give model inputs in floating point"),
    (torch.zeros(2, 2, dtype=torch.uint8), r"x has dtype torch.uint8; .*dequantise pixels first"),
    (torch.zeros(0, 2), r"x has shape \(0, 2\); give \(B, \*\) with at least one sample"),
    (torch.zeros(2, 0), r"x has shape \(2, 0\); give \(B, \*\)"),
    (torch.tensor(0.5), r"x has shape \(\); give \(B, \*\)"),
]


@pytest.mark.parametrize(("x", "message"), BAD)
def test_states_that_are_none(x, message):
    score_fn = mixture_2d().score_fn(VPSDE())
    with pytest.raises(ValueError, match=message):
        transport(VPSDE(), score_fn, x, 1e-5, 1.0)
    with pytest.raises(ValueError, match=message):
        log_likelihood(VPSDE(), score_fn, x)


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("bad", [0.0, -1e-5, math.nan, math.inf])
def test_tolerances_are_positive(name, bad):
    with pytest.raises(ValueError, match=rf"{name} is {bad}; it must be a finite number above 0"):
        transport(VPSDE(), mixture_2d().score_fn(VPSDE()), torch.zeros(2, 2), 1e-5, 1.0, **{name: bad})


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.5, math.nan])
def test_times_outside_the_process(bad):
    score_fn = mixture_2d().score_fn(VPSDE())
    for t, s in ((0.5, bad), (bad, 0.5)):
        with pytest.raises(ValueError, match=rf"time {bad} is not in \(0, 1\], where the flow runs"):
            transport(VPSDE(), score_fn, torch.zeros(2, 2), t, s)


def test_messages_speak_of_time():
    """The VE flow runs in u = asinh(sigma), to u = 4.6; its score fails below t = 0.6, where u is about 1.1."""
    sde, exact = VESDE(), mixture_2d().score_fn(VESDE())

    def broken(x, t):
        return exact(x, t) * match_dims(torch.where(t < 0.6, math.nan, 1.0), x)

    x = torch.ones(2, 2)
    with pytest.raises(IntegrationError, match=r"the drift is not finite at t = 0\.5[5-9]\d* "):
        transport(sde, broken, x, sde.T, sde.t_min, method="rk4", steps=100)
    # euler's evaluation after 50 of 100 equal steps in u, from asinh(50) down to asinh(sigma(t_min))
    middle = math.sinh((math.asinh(50) + math.asinh(0.01 * 5000**sde.t_min)) / 2)
    t = math.log(middle / 0.01) / math.log(5000)
    with pytest.raises(IntegrationError, match=rf"euler is still at t = {t:g} after max_nfe = 50"):
        transport(sde, exact, x.double(), sde.T, sde.t_min, method="euler", steps=100, max_nfe=50)


@pytest.mark.parametrize(
    ("field", "options", "message"),
    [
        (lambda u, x: x, {"max_nfe": 0}, "is still at t = 100 after max_nfe = 0"),
        (lambda u, x: x / 0, {}, r"the drift is not finite at t = 100 \(evaluation 1\)"),
        (lambda u, x: x * x, {}, r"gave up at t = (101|100\.999)\S* after \d+ evaluations"),
    ],
    ids=["max_nfe", "not finite", "gave up"],
)
def test_integrate_speaks_of_the_time_it_is_told(field, options, message):
    """x' = x^2 from 1 has its pole at 1."""
    with pytest.raises(IntegrationError, match=f"dopri5:? {message}"):
        integrate(field, torch.ones(1, 1).double(), 0.0, 2.0, time_of=lambda u: 100 + u, **options)
