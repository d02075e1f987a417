"""The weights of the multistep samplers against closed forms: Adams's, phi-functions, quadrature by scipy."""

import math

import numpy as np
import pytest
import torch
from oracles import PROCESSES
from scipy import integrate

from samplers.deis import DEIS
from samplers.dpmpp import DPMSolverPP
from samplers.ipndm import IPNDM
from samplers.multistep import Measure, gauss_legendre, lagrange_weights
from sde_lib import VESDE


def scalar(t):
    return torch.tensor(t, dtype=torch.float64)


ADAMS_BASHFORTH = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
ADAMS_MOULTON = [[1], [1 / 2, 1 / 2], [5 / 12, 8 / 12, -1 / 12], [9 / 24, 19 / 24, -5 / 24, 1 / 24]]


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_equal_steps_in_n_have_the_weights_of_adams(points):
    sde, n, step = VESDE(), 2.0, -0.11
    t, s = sde.time_from_log_snr(-2 * scalar([n, n + step]).log())
    measure = IPNDM().measure(sde, t, s)
    assert measure.carry == 1
    for table, first in ((ADAMS_BASHFORTH, 0), (ADAMS_MOULTON, 1)):
        places = [n + (first - j) * step for j in range(points)]
        np.testing.assert_allclose(lagrange_weights(measure, places), step * np.array(table[points - 1]), rtol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_dpm_solver_pps_weights_are_its_phi_functions(process):
    """x_s = sigma_s / sigma_t x - alpha_s [phi_1 m_0 - phi_2 D_1 + 2 phi_3 D_2], on unequal steps."""
    sde = PROCESSES[process]
    t, s = scalar([0.5, 0.4])
    measure, (alpha, sigma) = DPMSolverPP().measure(sde, t, s), (float(c) for c in sde.marginal(s))
    lam, h = float(sde.log_snr(t)) / 2, float(sde.log_snr(s) - sde.log_snr(t)) / 2
    r0, r1 = 0.7, 1.6
    phi1 = math.expm1(-h)
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 0.5
    near, far = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
    d1, d2 = near + r0 / (r0 + r1) * (near - far), (near - far) / (r0 + r1)
    assert float(measure.carry) == pytest.approx(sigma / float(sde.sigma(t)), rel=1e-12)
    places = [lam, lam - r0 * h, lam - (r0 + r1) * h]
    for points, weights in (
        (1, np.array([-phi1])),
        (2, np.array([-phi1 + phi2 / r0, -phi2 / r0])),
        (3, phi2 * d1 - 2 * phi3 * d2 - phi1 * np.array([1, 0, 0])),
    ):
        np.testing.assert_allclose(lagrange_weights(measure, places[:points]), alpha * weights, rtol=1e-7)


@pytest.mark.parametrize("process", PROCESSES)
def test_deis_weights_are_the_papers_integrals_in_time(process):
    """C_j = alpha_s * integral of n'(t) prod (t - t_k) / (t_j - t_k), by scipy, with n' = g^2 / (2 alpha sigma)."""
    sde = PROCESSES[process]
    t, s, places = 0.5, 0.43, [0.5, 0.58, 0.61, 0.69]

    def integrand(u, j):
        alpha, sigma = (float(c) for c in sde.marginal(scalar(u)))
        slope = float(sde.diffusion(scalar(u))) ** 2 / (2 * alpha * sigma)
        return slope * math.prod((u - p) / (places[j] - p) for k, p in enumerate(places) if k != j)

    alpha_s = float(sde.marginal(scalar(s))[0])
    expected = [alpha_s * integrate.quad(integrand, t, s, args=(j,), epsabs=1e-13)[0] for j in range(4)]
    found = lagrange_weights(DEIS(4, "time").measure(sde, scalar(t), scalar(s)), places)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_polynomials_through_the_points_are_integrated_exactly(points):
    """A unit mass on [2, 1.6]: degree points - 1 to rounding, and one degree more not."""
    measure = Measure(1.0, *gauss_legendre(2.0, 1.6))
    places = [2.0, 2.3, 2.35, 2.9][:points]
    weights = lagrange_weights(measure, places)
    for degree in range(points + 1):
        found, true = weights @ np.array(places) ** degree, (1.6 ** (degree + 1) - 2 ** (degree + 1)) / (degree + 1)
        assert (abs(found - true) < 1e-12) == (degree < points)
