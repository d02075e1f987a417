"""Integration that cannot be done says why."""

import math

import pytest
import torch
from ode_problems import X0, Recorder, options, tangent

from sde_lib import METHODS, IntegrationError, integrate
from sde_lib.ode import FIXED


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
