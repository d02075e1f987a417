"""What each process is in its paper, and the arguments that it takes."""

import math

import numpy as np
import pytest
import torch

from sde_lib import EDMSDE, SDES, VESDE, VPSDE, CosineVPSDE, SubVPSDE

# The literature's formulas, in numpy.

TIMES = np.concatenate([[1e-5, 1e-4, 1e-3], np.linspace(0.01, 1.0, 100)])


def _vp(t, b0=0.1, b1=20.0):
    integral = b0 * t + 0.5 * t**2 * (b1 - b0)
    return np.exp(-integral / 2), np.sqrt(-np.expm1(-integral)), np.sqrt(b0 + t * (b1 - b0))


def _subvp(t, b0=0.1, b1=20.0):
    integral = b0 * t + 0.5 * t**2 * (b1 - b0)
    beta = b0 + t * (b1 - b0)
    return np.exp(-integral / 2), -np.expm1(-integral), np.sqrt(beta * -np.expm1(-2 * integral))


def _ve(t, low=0.01, high=50.0):
    sigma = low * (high / low) ** t
    return np.ones_like(t), sigma, sigma * np.sqrt(2 * np.log(high / low))


def _edm(t, low=0.002, high=80.0, rho=7.0):
    warped = low ** (1 / rho) + t * (high ** (1 / rho) - low ** (1 / rho))
    slope = rho * warped ** (rho - 1) * (high ** (1 / rho) - low ** (1 / rho))
    return np.ones_like(t), warped**rho, np.sqrt(2 * warped**rho * slope)


def _cosine(t, s=0.008):
    angle = (t + s) / (1 + s) * np.pi / 2
    alpha = np.cos(angle) / np.cos(s / (1 + s) * np.pi / 2)
    return alpha, np.sqrt(1 - alpha**2), np.sqrt(np.pi / (1 + s) * np.tan(angle))


@pytest.mark.parametrize(
    ("name", "paper", "end"),
    [("vp", _vp, 1), ("subvp", _subvp, 1), ("ve", _ve, 1), ("edm", _edm, 1), ("cosine", _cosine, 0.998)],
)
def test_formulas_of_the_papers(name, paper, end):
    t = TIMES[end >= TIMES]
    sde = SDES[name]()
    alpha, sigma, g = paper(t)
    ours = torch.from_numpy(t)
    # sqrt(1 - alpha^2) as the cosine's paper has it loses digits at small t
    assert np.allclose(sde.marginal(ours)[0].numpy(), alpha, rtol=1e-12)
    assert np.allclose(sde.marginal(ours)[1].numpy(), sigma, rtol=1e-10 if name == "cosine" else 1e-12)
    assert np.allclose(sde.diffusion(ours).numpy(), g, rtol=1e-10)


def test_cosine_beta_is_constant_once_clipped():
    sde = CosineVPSDE()
    assert sde.breakpoints[0] == pytest.approx(0.998, abs=1e-5)
    t = torch.linspace(sde.breakpoints[0], 1, 50, dtype=torch.float64)
    assert torch.allclose(sde.beta(t), torch.full_like(t, 999.0), rtol=1e-12)


def test_song_s_defaults():
    assert (VPSDE().beta_min, VPSDE().beta_max) == (SubVPSDE().beta_min, SubVPSDE().beta_max) == (0.1, 20.0)
    assert (VESDE().sigma_min, VESDE().sigma_max) == (0.01, 50.0)
    assert (EDMSDE().sigma_min, EDMSDE().sigma_max, EDMSDE().rho) == (0.002, 80.0, 7.0)


def test_sub_vp_keeps_less_variance_than_vp():
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    assert torch.equal(VPSDE().log_alpha(t), SubVPSDE().log_alpha(t))
    assert (SubVPSDE().sigma(t) < VPSDE().sigma(t)).all()


def test_a_uniform_grid_of_the_edm_process_is_karras_s_schedule():
    n, low, high, rho = 18, 0.002, 80.0, 7.0
    i = np.arange(n)
    karras = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    ours = EDMSDE().sigma(torch.linspace(1, 0, n, dtype=torch.float64))
    assert np.allclose(ours.numpy(), karras, rtol=1e-12)


# Arguments.


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        *((build, name) for build in (VPSDE, SubVPSDE) for name in ("beta_min", "beta_max")),
        *((build, name) for build in (VESDE, EDMSDE) for name in ("sigma_min", "sigma_max")),
        (EDMSDE, "rho"),
        (CosineVPSDE, "s"),
        (CosineVPSDE, "beta_max"),
    ],
)
def test_arguments_must_be_positive(build, name, bad):
    with pytest.raises(ValueError, match=rf"{name} is {bad!r}; it must be a finite number above 0"):
        build(**{name: bad})


@pytest.mark.parametrize("build", [VPSDE, SubVPSDE])
def test_beta_must_not_fall(build):
    with pytest.raises(ValueError, match=r"beta_min = 3 exceeds beta_max = 2; beta\(t\) must not decrease"):
        build(3, 2)


@pytest.mark.parametrize("build", [VESDE, EDMSDE])
@pytest.mark.parametrize("low", [2.0, 3.0])
def test_sigma_must_grow(build, low):
    with pytest.raises(ValueError, match=rf"sigma_min = {low} is not below sigma_max = 2\.0"):
        build(low, 2.0)


def test_cosine_clip_must_lie_above_its_start():
    with pytest.raises(ValueError, match=r"beta_max = 0\.01 lies below beta\(0\); use a larger one"):
        CosineVPSDE(beta_max=0.01)


def test_repr_shows_the_parameters():
    assert repr(VPSDE()) == "VPSDE(beta_min=0.1, beta_max=20)"
    assert repr(SubVPSDE(0.2, 5)) == "SubVPSDE(beta_min=0.2, beta_max=5)"
    assert repr(VESDE()) == "VESDE(sigma_min=0.01, sigma_max=50)"
    assert repr(CosineVPSDE()) == "CosineVPSDE(s=0.008, beta_max=999)"
    assert repr(EDMSDE()) == "EDMSDE(sigma_min=0.002, sigma_max=80, rho=7)"
