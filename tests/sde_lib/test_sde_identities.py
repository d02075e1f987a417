"""What every process must satisfy, and what each one is in its paper."""

import math
import re

import numpy as np
import pytest
import torch
from oracles import PROCESSES, LinearPath, assert_law, gaussian, gaussian_flow, generator, mixture, slope

from sde_lib import EDMSDE, SDE, SDES, VESDE, VPSDE, CosineVPSDE, GaussianMixture, SubVPSDE, integrate

VARIANTS = {
    "vp-flat": VPSDE(2.0, 2.0),
    "vp-mild": VPSDE(0.01, 7.0),
    "subvp-mild": SubVPSDE(0.01, 7.0),
    "ve-narrow": VESDE(0.1, 3.0),
    "cosine-clipped": CosineVPSDE(0.02, 30.0),
    "edm-linear": EDMSDE(0.01, 20.0, rho=1.0),
}
ALL = PROCESSES | VARIANTS
every_process = pytest.mark.parametrize("sde", ALL.values(), ids=ALL.keys())


def times(sde, n=400, start=None, dtype=torch.float64):
    """From t_min to T, dense at both ends of the scale of log t, off the kinks."""
    start = sde.t_min if start is None else start
    t = torch.cat([torch.logspace(math.log10(start), 0, n).double(), torch.linspace(start, sde.T, n).double()])
    t = t.clamp(start, sde.T).sort().values.unique()
    for kink in sde.breakpoints:
        t = t[(t - kink).abs() > 1e-6]
    return t.to(dtype)


def derivative(fn, t):
    t = t.clone().requires_grad_()
    value = fn(t)
    if not value.requires_grad:  # a constant
        return torch.zeros_like(t)
    return torch.autograd.grad(value.sum(), t)[0]


# The identities that bind the four formulas.


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


# Perturbing, drift, reverse.


@every_process
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 4, 4), (5, 1, 2, 3, 2)])
def test_perturb_and_marginal_prob(sde, shape):
    x0, eps = torch.randn(shape), torch.randn(shape)
    t = torch.rand(5)
    alpha, sigma = sde.marginal(t)
    mean, std = sde.marginal_prob(x0, t)
    x = sde.perturb(x0, t, eps)
    drift, diffusion = sde.sde(x0, t)
    assert std.shape == diffusion.shape == (5,)
    assert x.dtype == torch.float32
    for i in range(5):
        assert torch.equal(mean[i], alpha[i] * x0[i])
        assert torch.equal(x[i], alpha[i] * x0[i] + sigma[i] * eps[i])
        assert torch.equal(drift[i], sde.drift_coeff(t)[i] * x0[i])
    assert torch.equal(std, sigma)
    assert torch.equal(diffusion, sde.diffusion(t))


@every_process
@pytest.mark.parametrize("time", [0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.tensor(0.3, dtype=torch.float64)])
def test_one_time_serves_the_whole_batch(sde, time):
    x, eps = torch.randn(2, 4, 3, 2, 2)
    each = torch.full((4,), 0.3)
    assert torch.equal(sde.perturb(x, time, eps), sde.perturb(x, each, eps))
    for ours, theirs in zip(sde.sde(x, time), sde.sde(x, each), strict=True):
        assert torch.equal(ours, theirs)


@every_process
def test_a_number_is_a_time_in_x_s_own_precision(sde):
    x, eps = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.equal(sde.perturb(x, 0.3, eps), sde.perturb(x, torch.tensor(0.3, dtype=torch.float64), eps))
    assert not torch.equal(sde.perturb(x, 0.3, eps), sde.perturb(x, torch.tensor(0.3), eps))


@every_process
def test_times_of_another_shape_are_refused(sde):
    x = torch.zeros(4, 2)
    for bad in (torch.zeros(3), torch.zeros(4, 1), torch.zeros(4, 2)):
        message = re.escape(f"time has shape {tuple(bad.shape)}; give () or (B,) with B = 4, the batch of x")
        with pytest.raises(ValueError, match=message):
            sde.perturb(x, bad, x)
        with pytest.raises(ValueError, match=message):
            sde.reverse(lambda x, t: x).sde(x, bad)


@every_process
@pytest.mark.parametrize("time", [0.02, 0.3, 0.9])
def test_all_three_equations_have_the_same_p_t(sde, time):
    """Fokker-Planck for the forward SDE, the reverse SDE and the ODE, with every term by autograd from log p_t.

    With s = grad log p:   d/dt log p + div b + b.s = +- g^2 / 2 (div s + |s|^2),   + forwards, - in reverse, 0 for the
    ODE, where b is the drift and g the diffusion that the object reports.
    """
    law = mixture((3, 1))
    x = law.marginal(sde, time).sample(6, generator=generator(2), dtype=torch.float64).requires_grad_()
    t = torch.full((6,), time, dtype=torch.float64, requires_grad=True)
    log_p = law.log_prob(x, sde, t)
    score, rate = torch.autograd.grad(log_p.sum(), (x, t), create_graph=True)

    def divergence(field):
        flat = field.flatten(1)
        rows = (torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0].flatten(1)[:, i] for i in range(3))
        return sum(rows)

    spread = divergence(score) + score.square().flatten(1).sum(1)
    score_fn = law.score_fn(sde)
    for equation, sign in (
        (sde, 1.0),
        (sde.reverse(score_fn), -1.0),
        (sde.reverse(score_fn, probability_flow=True), 0.0),
    ):
        drift, diffusion = equation.sde(x, t)
        left = rate + divergence(drift) + (drift * score).flatten(1).sum(1)
        assert torch.allclose(left, 0.5 * sign * sde.diffusion(t) ** 2 * spread, rtol=1e-9, atol=1e-7)
        assert torch.equal(diffusion, sde.diffusion(t) if sign else torch.zeros_like(t))


# The prior.


@every_process
def test_prior_is_what_p_T_becomes(sde):
    """N(0, prior_std^2): the kernel's own standard deviation at T, to the little signal that is left."""
    alpha, sigma = sde.marginal(torch.tensor(sde.T, dtype=torch.float64))
    assert sde.prior_std == pytest.approx(float(sigma), abs=1.01 * float(alpha**2) if alpha < 1 else 0)


@pytest.mark.parametrize("name", PROCESSES)
def test_prior_samples_have_the_prior_s_law(name):
    sde = PROCESSES[name]
    z = sde.prior_sample((4000, 3, 2), generator=generator(4), dtype=torch.float64)
    assert_law(z, GaussianMixture([1.0], torch.zeros(1, 3, 2), std=sde.prior_std))


@every_process
def test_prior_samples_come_from_the_generator_alone(sde):
    state = torch.get_rng_state()
    z = sde.prior_sample((2, 3), generator=generator(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(z, sde.prior_sample([2, 3], generator=generator(5), device="cpu"))
    assert not torch.equal(z, sde.prior_sample((2, 3), generator=generator(6)))
    assert z.dtype == torch.float32
    assert sde.prior_sample((1,), dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("name", PROCESSES)
def test_kernel_samples_have_the_marginal_law(name):
    """perturb(x0 ~ data, t, eps) ~ p_t, and the step s -> t of ``transition`` carries p_s to p_t."""
    sde, law, draw = PROCESSES[name], mixture((2, 2)), generator(7)
    n = 6000
    x0 = law.sample(n, generator=draw, dtype=torch.float64)
    s, t = (torch.full((n,), v, dtype=torch.float64) for v in (0.1, 0.35))

    def noise():
        return torch.randn(x0.shape, generator=draw, dtype=torch.float64)

    x_s = sde.perturb(x0, s, noise())
    assert_law(x_s, law.marginal(sde, 0.1))
    ratio, std = sde.transition(s, t)
    assert_law(ratio[:, None, None] * x_s + std[:, None, None] * noise(), law.marginal(sde, 0.35))


# A user's own process.


def test_four_formulas_make_a_process():
    """Nothing else is written by the user: the flow, the prior and the inverse follow."""
    sde = LinearPath()
    assert isinstance(sde, SDE)
    assert sde.prior_std == pytest.approx(1.02, rel=1e-12)
    assert repr(sde) == "LinearPath()"
    law, mean, variance = gaussian((3,))
    x = law.sample(4, generator=generator(8), dtype=torch.float64)
    flow = sde.reverse(law.score_fn(sde), probability_flow=True)
    solved = integrate(lambda t, x: flow.sde(x, t)[0], x, 0.9, 0.1, rtol=1e-10, atol=1e-10).x
    assert torch.allclose(solved, gaussian_flow(sde, x, 0.9, 0.1, mean, variance), rtol=0, atol=1e-9)


@pytest.mark.parametrize("missing", ["log_alpha", "sigma", "drift_coeff", "diffusion"])
def test_all_four_formulas_are_needed(missing):
    formulas = {name: getattr(LinearPath, name) for name in ("log_alpha", "sigma", "drift_coeff", "diffusion")}
    del formulas[missing]
    with pytest.raises(TypeError, match=missing):
        type("Partial", (SDE,), formulas)()


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
