"""The DDPM chain of a variance-preserving process: its closed forms at N = 500 and 1000, and its limit."""

import re

import numpy as np
import pytest
import torch
from oracles import PROCESSES, slope

from sde_lib import SDES, VPSDE, CosineVPSDE, DDPMSchedule, ddpm_schedule

PRESERVING = {"vp": VPSDE(), "cosine": CosineVPSDE()}
both = pytest.mark.parametrize("sde", PRESERVING.values(), ids=PRESERVING.keys())
lengths = pytest.mark.parametrize("n", [500, 1000])
chains = pytest.mark.parametrize(
    ("sde", "n"),
    [(VPSDE(), 500), (VPSDE(), 1000), (CosineVPSDE(), 1000), (CosineVPSDE(beta_max=99.0), 500)],
    ids=["vp-500", "vp-1000", "cosine-1000", "cosine-500"],
)


def test_default_length():
    assert ddpm_schedule(VPSDE()).steps == 500


@lengths
def test_betas_are_ho_s_line(n):
    """0.1 / N .. 20 / N; for N = 1000 this is 1e-4 .. 0.02 of arXiv 2006.11239."""
    schedule = ddpm_schedule(VPSDE(), n)
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == schedule.times.dtype == torch.float64
    assert schedule.betas.shape == schedule.alphas_cumprod.shape == schedule.times.shape == (n,)
    assert np.allclose(schedule.betas.numpy(), np.linspace(0.1 / n, 20 / n, n), rtol=1e-14, atol=0)
    assert schedule.betas[0] == 0.1 / n
    assert schedule.betas[-1] == 20 / n


@lengths
def test_alphas_cumprod_is_the_product(n):
    schedule = ddpm_schedule(VPSDE(), n)
    product = np.cumprod(1 - np.linspace(0.1 / n, 20 / n, n, dtype=np.longdouble))
    assert np.allclose(schedule.alphas_cumprod.numpy(), product.astype(np.float64), rtol=1e-13, atol=0)
    assert (schedule.alphas_cumprod.diff() < 0).all()


@chains
def test_the_chain_s_own_recursion(sde, n):
    """One step of x_i = sqrt(1 - beta) x_{i-1} + sqrt(beta) noise after another, from x_0."""
    schedule = ddpm_schedule(sde, n)
    signal, variance = 1.0, 0.0
    for beta, cumulated in zip(schedule.betas.tolist(), schedule.alphas_cumprod.tolist(), strict=True):
        signal, variance = signal * np.sqrt(1 - beta), (1 - beta) * variance + beta
        assert signal**2 == pytest.approx(cumulated, rel=1e-12)
        assert variance == pytest.approx(1 - cumulated, rel=1e-12)


def test_values_at_the_end_of_the_chain():
    """The continuous process ends at exp(-10.05) = 4.3e-5; chains forget a little faster."""
    assert float(ddpm_schedule(VPSDE(), 500).alphas_cumprod[-1]) == pytest.approx(3.8e-5, rel=0.01)
    assert float(ddpm_schedule(VPSDE(), 1000).alphas_cumprod[-1]) == pytest.approx(4.04e-5, rel=0.002)


@chains
def test_betas_are_beta_of_t_over_n(sde, n):
    t = np.linspace(0, 1, n)
    betas = sde.beta(torch.from_numpy(t)).numpy() / n
    assert np.allclose(ddpm_schedule(sde, n).betas.numpy(), betas, rtol=1e-14)


def test_the_cosine_chain_of_1000_steps_is_clipped_at_0_999():
    """As in arXiv 2102.09672. Their beta_i is a mean over the step, ours its value at t_i: O(1/N) apart."""
    ours = ddpm_schedule(CosineVPSDE(), 1000)
    assert ours.betas.max() == pytest.approx(0.999, rel=1e-12)
    edges = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    theirs = np.minimum(1 - edges[1:] / edges[:-1], 0.999)
    middle = slice(5, 950)
    assert np.allclose(ours.betas.numpy()[middle], theirs[middle], rtol=0.06)
    assert np.allclose(ours.alphas_cumprod.numpy()[middle], np.cumprod(1 - theirs)[middle], rtol=0.05, atol=2e-4)


@both
@pytest.mark.parametrize("t", [0.25, 0.5])
def test_the_chain_becomes_the_process_at_first_order(sde, t):
    sizes = [1000, 2000, 4000, 8000, 16000]
    exact = float((2 * sde.log_alpha(torch.tensor(t, dtype=torch.float64))).exp())
    errors = [abs(float(ddpm_schedule(sde, n).alphas_cumprod[int(t * n) - 1]) - exact) for n in sizes]
    assert slope(sizes, errors) == pytest.approx(-1, abs=0.15)
    assert errors[-1] < 1e-4


@chains
def test_times_are_where_the_process_has_this_signal(sde, n):
    schedule = ddpm_schedule(sde, n)
    alpha, sigma = sde.marginal(schedule.times)
    assert torch.allclose(alpha**2, schedule.alphas_cumprod, rtol=1e-10, atol=0)
    assert torch.allclose(sigma**2, 1 - schedule.alphas_cumprod, rtol=1e-10, atol=0)
    assert (schedule.times.diff() > 0).all()
    assert schedule.times[0] > 0


@lengths
def test_times_of_vp_solve_the_quadratic(n):
    """0.1 t + 9.95 t^2 = -log alphas_cumprod, by numpy's roots."""
    schedule = ddpm_schedule(VPSDE(), n)
    for i in (0, 1, n // 2, n - 1):
        roots = np.roots([9.95, 0.1, np.log(schedule.alphas_cumprod[i].item())])
        assert float(schedule.times[i]) == pytest.approx(roots.max(), rel=1e-9)


@lengths
def test_times_are_near_the_fraction_of_the_chain(n):
    """t_i = i / N to O(1/N), i = 1 .. N; the last may exceed 1 by as little."""
    times = ddpm_schedule(VPSDE(), n).times
    fraction = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert (times - fraction).abs().max() < 4 / n
    assert times[-1] > 1


def test_other_betas():
    schedule = ddpm_schedule(VPSDE(0.5, 4.0), 10)
    assert np.allclose(schedule.betas.numpy(), np.linspace(0.05, 0.4, 10), rtol=1e-14)
    assert np.allclose(schedule.alphas_cumprod.numpy(), np.cumprod(1 - np.linspace(0.05, 0.4, 10)), rtol=1e-14)


def test_a_schedule_cannot_be_changed():
    schedule = ddpm_schedule(VPSDE(), 50)
    with pytest.raises(AttributeError, match="betas"):
        schedule.betas = torch.zeros(50)
    assert isinstance(schedule, DDPMSchedule)


# Errors.


@pytest.mark.parametrize("name", [name for name in PROCESSES if name not in PRESERVING])
def test_other_processes_have_no_chain(name):
    sde = PROCESSES[name]
    message = rf"needs a variance-preserving process \(VPSDE, CosineVPSDE\); got {re.escape(repr(sde))}"
    with pytest.raises(TypeError, match=message):
        ddpm_schedule(sde, 500)


def test_every_registered_process_with_unit_total_variance_has_a_chain():
    t = torch.linspace(0.1, 1, 9, dtype=torch.float64)
    for build in SDES.values():
        alpha, sigma = build().marginal(t)
        if torch.allclose(alpha**2 + sigma**2, torch.ones_like(t)):
            assert ddpm_schedule(build(), 1000).steps == 1000


@pytest.mark.parametrize(
    ("sde", "steps", "limit"),
    [(VPSDE(), n, 20) for n in (2, 3, 7, 19, 20)]
    + [(VPSDE(0.1, 20.5), 20, 20)]
    + [(CosineVPSDE(), n, 999) for n in (2, 20, 500, 998, 999)],
)
def test_too_few_steps_name_the_number_that_suffices(sde, steps, limit):
    message = (
        f"{steps} steps are too few for {sde!r}: beta_i would reach {sde.beta_max / steps:.3g}; use more than {limit}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ddpm_schedule(sde, steps)
    assert ddpm_schedule(sde, limit + 1).betas.max() < 1


@pytest.mark.parametrize("steps", [0, 1, -5, 10.0, "500", None, True])
def test_steps_must_be_a_whole_number(steps):
    message = f"steps is {re.escape(repr(steps))}; a chain needs a whole number of at least 2"
    with pytest.raises(ValueError, match=message):
        ddpm_schedule(VPSDE(), steps)
