"""Prediction types: each row turns the quantity that it names into the noise, for every process."""

import math

import pytest
import torch
from oracles import PROCESSES, generator

from sde_lib import PREDICTIONS

SIGMA_DATA = 0.7


def f_edm(alpha, sigma, x0, eps, d):
    """EDM's training target (x0 - c_skip y) / c_out, on y = x_t / alpha at noise level sigma / alpha."""
    level, y = sigma / alpha, x0 + sigma / alpha * eps
    c_skip = d**2 / (level**2 + d**2)
    c_out = level * d / torch.sqrt(level**2 + d**2)
    return (x0 - c_skip * y) / c_out


# What a perfect network returns, from the definitions in the papers.
PERFECT = {
    "eps": lambda alpha, sigma, x0, eps, d: eps,
    "score": lambda alpha, sigma, x0, eps, d: -eps / sigma,  # of p(x_t | x0)
    "x0": lambda alpha, sigma, x0, eps, d: x0,
    "v": lambda alpha, sigma, x0, eps, d: alpha * eps - sigma * x0,
    "edm": f_edm,
}


def grid(sde, n=60):
    return torch.cat([torch.logspace(math.log10(sde.t_min), 0, n), torch.linspace(sde.t_min, 1, n)]).double()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_perfect_network_gives_the_noise(name, prediction):
    sde = PROCESSES[name]
    t = grid(sde)
    x0, eps = torch.randn(2, len(t), generator=generator(), dtype=torch.float64)
    alpha, sigma = sde.marginal(t)
    x = sde.perturb(x0, t, eps)
    row = PREDICTIONS[prediction](alpha, sigma, SIGMA_DATA)
    eps_hat = row.k * x + row.c * PERFECT[prediction](alpha, sigma, x0, eps, SIGMA_DATA)
    # x / sigma - alpha x0 / sigma loses the digits in alpha x0 / sigma when that is large
    assert ((eps_hat - eps).abs() <= 1e-12 * (1 + alpha / sigma)).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", PROCESSES)
def test_an_error_of_the_network_is_scaled_by_c(name, prediction):
    """d eps_hat / dF = c never vanishes before T: every type can express every noise."""
    sde = PROCESSES[name]
    alpha, sigma = sde.marginal(grid(sde))
    row = PREDICTIONS[prediction](alpha, sigma, SIGMA_DATA)
    assert (row.c != 0).all()
    for values in row:
        assert values.shape == alpha.shape
        assert values.dtype == alpha.dtype
        assert values.isfinite().all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_coefficients_keep_shape_and_dtype(prediction, dtype, shape):
    alpha, sigma = torch.full(shape, 0.6, dtype=dtype), torch.full(shape, 0.8, dtype=dtype)
    for values in PREDICTIONS[prediction](alpha, sigma, SIGMA_DATA):
        assert values.shape == shape
        assert values.dtype == dtype


@pytest.mark.parametrize("prediction", [name for name in PREDICTIONS if name != "edm"])
def test_only_edm_scales_its_input_and_knows_the_data(prediction):
    alpha, sigma = PROCESSES["vp"].marginal(torch.linspace(0.01, 1, 9))
    row, other = (PREDICTIONS[prediction](alpha, sigma, d) for d in (0.5, 2.0))
    assert torch.equal(row.c_in, torch.ones(9))
    assert torch.equal(row.k, other.k)
    assert torch.equal(row.c, other.c)


@pytest.mark.parametrize("d", [0.5, 1.0, 3.0])
def test_edm_row_is_table_1(d):
    """For alpha = 1: D = x - sigma eps_hat = c_skip x + c_out F(c_in x)."""
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    row = PREDICTIONS["edm"](torch.ones_like(sigma), sigma, d)
    assert torch.allclose(1 - sigma * row.k, d**2 / (sigma**2 + d**2), rtol=0, atol=1e-15)
    assert torch.allclose(-sigma * row.c, sigma * d / (sigma**2 + d**2).sqrt(), rtol=1e-13)
    assert torch.allclose(row.c_in, 1 / (sigma**2 + d**2).sqrt(), rtol=1e-13)


@pytest.mark.parametrize("name", PROCESSES)
def test_edm_row_is_table_1_on_the_rescaled_state(name):
    """For any alpha: the same network input and the same denoised, on x / alpha at the level sigma / alpha."""
    sde = PROCESSES[name]
    alpha, sigma = sde.marginal(grid(sde))
    ours = PREDICTIONS["edm"](alpha, sigma, SIGMA_DATA)
    theirs = PREDICTIONS["edm"](torch.ones_like(alpha), sigma / alpha, SIGMA_DATA)
    assert torch.allclose(alpha * ours.c_in, theirs.c_in, rtol=1e-13)
    assert torch.allclose(alpha * ours.k, theirs.k, rtol=1e-13)
    assert torch.allclose(ours.c, theirs.c, rtol=1e-13)


@pytest.mark.parametrize("name", PROCESSES)
def test_edm_input_and_target_have_unit_variance(name):
    """EDM's two demands on its preconditioning, for data of variance d^2; both are linear in (x0, eps)."""
    sde, d = PROCESSES[name], SIGMA_DATA
    alpha, sigma = sde.marginal(grid(sde))
    row = PREDICTIONS["edm"](alpha, sigma, d)
    assert torch.allclose(row.c_in**2 * (alpha**2 * d**2 + sigma**2), torch.ones_like(alpha), rtol=1e-12)
    # F = (eps - k x) / c = ((1 - k sigma) eps - k alpha x0) / c
    # 1 - k sigma loses the digits of alpha^2 d^2 / (alpha^2 d^2 + sigma^2), down to 1e-10 there
    target = (((1 - row.k * sigma) / row.c) ** 2) + (row.k * alpha * d / row.c) ** 2
    assert torch.allclose(target, torch.ones_like(alpha), rtol=1e-9)


@pytest.mark.parametrize("name", ["vp", "cosine"])
def test_v_is_edm_of_unit_data_up_to_its_sign(name):
    sde = PROCESSES[name]
    alpha, sigma = sde.marginal(grid(sde))
    v, edm = (PREDICTIONS[row](alpha, sigma, 1.0) for row in ("v", "edm"))
    assert torch.allclose(v.c_in, edm.c_in, rtol=1e-12)
    assert torch.allclose(v.k, edm.k, rtol=1e-12)
    assert torch.allclose(v.c, -edm.c, rtol=1e-12)


def test_v_is_salimans_and_ho_s_on_a_variance_preserving_process():
    """x0 = alpha x - sigma v and eps = sigma x + alpha v."""
    alpha, sigma = PROCESSES["vp"].marginal(grid(PROCESSES["vp"]))
    row = PREDICTIONS["v"](alpha, sigma, SIGMA_DATA)
    assert torch.allclose(row.k, sigma, rtol=1e-12)
    assert torch.allclose(row.c, alpha, rtol=1e-12)


def test_v_of_an_infinitely_noisy_state_is_bounded():
    """On variance-exploding processes too: k sigma -> 1 and c -> 0 as alpha / sigma, never over 1 / sigma."""
    sde = PROCESSES["ve"]
    alpha, sigma = sde.marginal(grid(sde))
    row = PREDICTIONS["v"](alpha, sigma, SIGMA_DATA)
    assert torch.allclose(row.k, sigma / (1 + sigma**2), rtol=1e-13)
    assert torch.allclose(row.c, 1 / (1 + sigma**2), rtol=1e-13)
