"""The identities that bind the formulas of every process, its transitions, and the inverse of its log-SNR."""

import pytest
import torch
from oracles import generator, slope
from processes import derivative, every_process, times

from sde_lib import SDE, SDES, VPSDE, CosineVPSDE


@every_process
def test_mean_coefficient_obeys_the_drift(sde):
    t = times(sde)
    f, (alpha, _) = sde.drift_coeff(t), sde.marginal(t)
    assert torch.allclose(derivative(sde.log_alpha, t), f, rtol=1e-9, atol=0)
    assert torch.allclose(derivative(lambda u: sde.marginal(u)[0], t), f * alpha, rtol=1e-9, atol=0)


@every_process
def test_variance_obeys_drift_and_diffusion(sde):
    t = times(sde)
    f, g, (_, sigma) = sde.drift_coeff(t), sde.diffusion(t), sde.marginal(t)
    left = derivative(lambda u: sde.marginal(u)[1].square(), t)
    # near T the two terms on the right cancel for VP, so the error is relative to the larger
    assert ((left - 2 * f * sigma**2 - g**2).abs() <= 1e-9 * g**2).all()


@every_process
def test_log_snr_falls_strictly_and_at_the_rate_of_g_over_sigma(sde):
    t = times(sde, 5000)
    assert (sde.log_snr(t).diff() < 0).all()
    alpha, sigma = sde.marginal(t)
    assert torch.allclose(sde.log_snr(t), (alpha**2 / sigma**2).log(), rtol=1e-9, atol=1e-9)
    assert torch.allclose(derivative(sde.log_snr, t), -((sde.diffusion(t) / sigma) ** 2), rtol=1e-9, atol=0)


@every_process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_finite_from_0_to_T(sde, dtype):
    t = torch.tensor([0.0, 1e-30, 1e-12, 1e-8, sde.t_min, 1e-3, 0.5, *sde.breakpoints, 0.999, sde.T], dtype=dtype)
    for values in (*sde.marginal(t), sde.drift_coeff(t), sde.diffusion(t), sde.log_alpha(t)):
        assert values.dtype == dtype
        assert values.isfinite().all()
    assert sde.marginal(t)[0][0] == 1
    later = t[1:]
    ratio, std = sde.transition(torch.zeros_like(later), later)  # from clean data
    assert ratio.isfinite().all()
    assert std.isfinite().all()
    assert sde.log_snr(t[2:]).isfinite().all()


@every_process
def test_breakpoints_are_the_kinks(sde):
    """The diffusion's slope jumps at a breakpoint and nowhere else."""
    h = 1e-4
    t = torch.arange(0.01, 1.0, h, dtype=torch.float64)
    curvature = sde.diffusion(t).log().diff(n=2).abs()
    assert all(0 < kink < sde.T for kink in sde.breakpoints)
    for kink in sde.breakpoints:
        before, after = (torch.tensor([kink + side * 1e-6], dtype=torch.float64) for side in (-1, 1))
        assert not torch.allclose(derivative(sde.diffusion, before), derivative(sde.diffusion, after), rtol=1e-2)
        curvature = curvature[(t[1:-1] - kink).abs() > 2 * h]
        t = torch.cat([t[:1], t[1:-1][(t[1:-1] - kink).abs() > 2 * h], t[-1:]])
    assert curvature.max() < 1e-2


# float32.


@every_process
def test_float32_has_float32_s_digits(sde):
    """Seven digits, less those lost in exp(log sigma) over a range of 1e4 and, for the clipped cosine, in 1 - t."""
    t32 = torch.cat([times(sde, 4000, dtype=torch.float32), torch.tensor([sde.t_min])])
    t64 = t32.double()

    def error(fn):
        return ((fn(t32).double() - fn(t64)) / fn(t64)).abs().max()

    assert error(lambda t: sde.marginal(t)[0]) < 1e-6
    assert error(lambda t: sde.marginal(t)[1]) < 1.5e-6
    assert error(sde.diffusion) < (5e-6 if isinstance(sde, CosineVPSDE) else 1.5e-6)


@every_process
@pytest.mark.parametrize("steps", [10, 1000, 10_000])
def test_float32_transitions_have_all_digits(sde, steps):
    """Also on steps so short that the two variances agree in their first digits."""
    grid = torch.linspace(sde.t_min, sde.T, steps + 1)
    in32 = sde.transition(grid[:-1], grid[1:])
    in64 = sde.transition(grid[:-1].double(), grid[1:].double())
    for low, high in zip(in32, in64, strict=True):
        assert low.dtype == torch.float32
        assert ((low.double() - high) / high).abs().max() < 1.2e-7


# Transitions.


@every_process
def test_transition_has_the_direct_mean_and_variance(sde):
    t = times(sde, 40)
    s, t = (v.flatten() for v in torch.meshgrid(t, t, indexing="ij"))
    s, t = s[s < t], t[s < t]
    ratio, std = sde.transition(s, t)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = sde.marginal(s), sde.marginal(t)
    assert torch.allclose(ratio, alpha_t / alpha_s, rtol=1e-12, atol=0)
    assert (std > 0).all()
    # the direct difference loses digits; what it can resolve is relative to sigma_t^2
    assert ((std**2 - (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)).abs() < 1e-14 * sigma_t**2 + 1e-18).all()


@every_process
def test_transitions_compose(sde):
    draw = torch.rand(3, 2000, generator=generator(1), dtype=torch.float64)
    s, u, t = sde.t_min + draw.sort(0).values * (sde.T - sde.t_min)
    (ratio_su, std_su), (ratio_ut, std_ut), (ratio, std) = (sde.transition(*pair) for pair in ((s, u), (u, t), (s, t)))
    assert torch.allclose(ratio, ratio_su * ratio_ut, rtol=1e-12, atol=0)
    assert torch.allclose(std**2, ratio_ut**2 * std_su**2 + std_ut**2, rtol=1e-9, atol=0)


@every_process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_time_no_noise(sde, dtype):
    t = torch.tensor([0.0, 1e-12, sde.t_min, 0.3, *sde.breakpoints, sde.T], dtype=dtype)
    ratio, std = sde.transition(t, t)
    assert torch.equal(ratio, torch.ones_like(t))
    assert torch.equal(std, torch.zeros_like(t))
    after = torch.nextafter(t[3], torch.tensor(1, dtype=dtype))
    assert sde.transition(t[3], after)[1] >= 0


@every_process
def test_transition_from_data_is_the_kernel(sde):
    """From t = 0 with its own noise (none for VP, sigma_min for VE) to t: the kernel at t."""
    t = times(sde, 50)
    zero = torch.zeros_like(t)
    ratio, std = sde.transition(zero, t)
    alpha, sigma = sde.marginal(t)
    assert torch.allclose(ratio, alpha, rtol=1e-12, atol=0)
    assert torch.allclose((ratio * sde.sigma(zero)) ** 2 + std**2, sigma**2, rtol=1e-12, atol=0)


@every_process
def test_transition_takes_scalars_and_batches(sde):
    s, t = torch.tensor([0.2, 0.5]), torch.tensor([0.3, 0.9])
    together = sde.transition(s, t)
    for i in range(2):
        ratio, std = sde.transition(s[i], t[i])
        assert ratio.shape == std.shape == ()
        assert (ratio, std) == (together[0][i], together[1][i])


def test_vp_transition_is_ddpm_s_step_to_second_order():
    """sqrt(1 - beta_i) and beta_i = beta(t_i) / N against one step from t_i - 1/N to t_i, in the middle of time."""
    sde, sizes, means, variances = VPSDE(), [100, 200, 400, 800, 1600], [], []
    for n in sizes:
        t = torch.tensor(0.5, dtype=torch.float64)
        beta = sde.beta(t) / n
        ratio, std = sde.transition(t - 1 / n, t)
        means.append((ratio - (1 - beta).sqrt()).abs())
        variances.append((std**2 - beta).abs())
    assert slope(sizes, means) == pytest.approx(-2, abs=0.05)
    assert slope(sizes, variances) == pytest.approx(-2, abs=0.05)


# log-SNR and its inverse.


@every_process
def test_time_from_log_snr_inverts(sde):
    t = times(sde)
    back = sde.time_from_log_snr(sde.log_snr(t))
    assert back.dtype == torch.float64
    # what the digits of lambda allow: dt = d lambda / lambda', a few roundings of lambda
    allowed = 1e-12 * t + 4e-15 * (1 + sde.log_snr(t).abs()) * (sde.sigma(t) / sde.diffusion(t)) ** 2
    assert ((back - t).abs() <= allowed).all()


@every_process
def test_every_log_snr_has_its_time(sde):
    lam = torch.linspace(*sde.log_snr(torch.tensor([sde.t_min, sde.T], dtype=torch.float64)).tolist(), 999).double()
    t = sde.time_from_log_snr(lam)
    assert (t.diff() > 0).all()
    assert torch.allclose(sde.log_snr(t), lam, rtol=1e-9, atol=1e-9)
    assert sde.time_from_log_snr(lam.float()).dtype == torch.float32
    assert torch.allclose(sde.time_from_log_snr(lam.float()).double(), t, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", SDES)
def test_closed_inverses_equal_the_bisection(name):
    sde = SDES[name]()
    lam = sde.log_snr(times(sde, 100))
    assert torch.allclose(sde.time_from_log_snr(lam), SDE.time_from_log_snr(sde, lam), rtol=1e-9, atol=1e-14)


def test_bisection_clamps_what_lies_outside():
    ends = SDE.time_from_log_snr(VPSDE(), torch.tensor([1e9, -1e9]))
    assert ends.tolist() == pytest.approx([0, 2], abs=1e-9)
