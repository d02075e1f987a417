"""Samplers that must agree: with each other, with the papers' own loops, and on a process and its rescaled twin."""

import math
from itertools import pairwise

import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import CORRECTORS, SAMPLERS, GeneratorNoise, PathNoise, Score, get_sampler, time_grid
from samplers.dpmpp import DPMSolverPP
from samplers.langevin import correct
from samplers.unipc import UniPC
from sde_lib import EDMSDE, VESDE, VPSDE

DATA = oracles.mixture_2d()
SEEDS = [3, 1, 4, 15]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def start(sde, t, seed=0):
    alpha, sigma = sde.marginal(torch.as_tensor(t, dtype=torch.float64))
    draw = oracles.generator(seed)
    x0, z = DATA.sample(len(SEEDS), generator=draw, dtype=torch.float64), torch.randn(len(SEEDS), 2, generator=draw)
    return alpha * x0 + sigma * z


def sample(sde, name, times, x=None, noise=None, denoise=False, **options):
    """From x (by default of the law of its time) over the given times, with the noise of SEEDS."""
    x = start(sde, times[0]) if x is None else x
    sampler = get_sampler(name, grid=times, denoise=denoise, **options) if isinstance(name, str) else name
    return sampler.sample(sde, DATA.score_fn(sde), x.shape, x_init=x, noise=noise or PathNoise(SEEDS)).x


def grid(sde, steps=7, rule="karras", t_end=0.02):
    return time_grid(sde, rule, steps, t_end, 0.9)


def eps(sde, x, t):
    return -sde.sigma(t) * DATA.score(x, sde, t)


def data(sde, x, t):
    alpha, sigma = sde.marginal(t)
    return (x - sigma * eps(sde, x, t)) / alpha


# With each other.


@pytest.mark.parametrize("process", PROCESSES)
def test_the_exponential_euler_step_has_many_names(process):
    """x_s / alpha_s = x_t / alpha_t + (n_s - n_t) eps_hat, with n = sigma / alpha."""
    sde = PROCESSES[process]
    x, times = start(sde, 0.9), grid(sde)
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
        x = alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * eps(sde, x, t))
    first = {"order": 1}
    names = {"ddim": {}, "euler": {}, "exponential_sde": {"eta": 0.0}, "dpmpp_sde": first | {"eta": 0.0}}
    for name, options in (names | dict.fromkeys(("dpm_solver", "dpmpp", "deis", "ipndm"), first)).items():
        torch.testing.assert_close(sample(sde, name, times, **options), x, msg=lambda m, n=name: f"{n}: {m}", **CLOSE)


@pytest.mark.parametrize("process", PROCESSES)
def test_ddim_of_eta_1_is_ancestral_is_the_exponential_sde(process):
    """With the same noise, image for image."""
    sde = PROCESSES[process]
    ancestral = sample(sde, "ancestral", grid(sde))
    for name, options in (("ddim", {"eta": 1.0}), ("exponential_sde", {"eta": 1.0}), ("dpmpp_sde", {"order": 1})):
        torch.testing.assert_close(sample(sde, name, grid(sde), **options), ancestral, **CLOSE)
    ddim, exponential = (sample(sde, name, grid(sde), eta=0.5) for name in ("ddim", "exponential_sde"))
    assert (ddim - exponential).abs().max() > 1e-4  # two families, that meet at 0 and 1 only


@pytest.mark.parametrize("process", PROCESSES)
def test_dpmpp_sde_without_noise_is_dpmpp(process):
    sde = PROCESSES[process]
    found = sample(sde, "dpmpp_sde", grid(sde), order=2, eta=0.0)
    torch.testing.assert_close(found, sample(sde, "dpmpp", grid(sde), order=2), **CLOSE)


@pytest.mark.parametrize("process", PROCESSES)
def test_stochastic_heun_without_churn_is_heun(process):
    sde = PROCESSES[process]
    heun = sample(sde, "heun", grid(sde))
    assert torch.equal(sample(sde, "stochastic_heun", grid(sde), churn=0.0), heun)
    assert torch.equal(sample(sde, "stochastic_heun", grid(sde), churn_min=1e9, churn_max=1e9), heun)
    assert (sample(sde, "stochastic_heun", grid(sde)) - heun).abs().max() > 1e-2


@pytest.mark.parametrize(("method", "name"), [("euler", "ddim"), ("heun2", "heun")])
def test_where_time_is_the_noise_level_general_methods_are_the_exponential_ones(method, name):
    """EDM with rho = 1: alpha = 1 and sigma linear in t, so that the flow is dx/dn = eps up to a constant."""
    sde = EDMSDE(rho=1.0, sigma_max=5.0)
    times = grid(sde, 9)
    torch.testing.assert_close(sample(sde, "ode", times, method=method), sample(sde, name, times), **CLOSE)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("process", PROCESSES)
def test_unipc_without_its_corrector_is_dpmpp(process, order):
    sde = PROCESSES[process]
    times = grid(sde)

    class Uncorrected(UniPC):
        corrects = DPMSolverPP.corrects

    plain = sample(sde, "dpmpp", times, order=order)
    torch.testing.assert_close(sample(sde, Uncorrected(order, grid=times, denoise=False), times), plain, **CLOSE)
    assert (sample(sde, "unipc", times, order=order) - plain).abs().max() > 1e-5
    one_step = [sample(sde, name, times[:2], order=order) for name in ("unipc", "dpmpp")]  # the last, uncorrected
    torch.testing.assert_close(*one_step, **CLOSE)


@pytest.mark.parametrize("predictor", ["ancestral", "heun", "none"])
def test_corrector_first_is_the_same_chain_shifted_by_one_round_of_corrections(predictor):
    """C P C P | C = C | P C P C. On VE, where the step size of a correction does not depend on the step beside it."""
    sde, options = VESDE(), {"predictor": predictor, "corrector_steps": 2, "snr": 0.2}
    times, rule, one = grid(sde), CORRECTORS["annealed_langevin"], torch.ones((), dtype=torch.float64)
    x = start(sde, times[0])

    def corrections(x, t, noise):
        score = Score(sde, DATA.score_fn(sde), noise)
        for _ in range(2):
            x = correct(score, x, t, one, rule, 0.2)
        return x

    noise = GeneratorNoise(oracles.generator(3))
    first = corrections(sample(sde, "pc", times, x, noise, corrector_first=True, **options), times[-1], noise)
    noise = GeneratorNoise(oracles.generator(3))
    after = sample(sde, "pc", times, corrections(x, times[0], noise), noise, **options)
    torch.testing.assert_close(first, after, **CLOSE)
    assert (first - sample(sde, "pc", times, x, **options)).abs().max() > 1e-3


# With the papers' loops.


@pytest.mark.parametrize("process", PROCESSES)
def test_dpm_solver_2_and_3_are_the_papers_algorithms_1_and_2(process):
    """arXiv 2206.00927, in its notation: lambda = log(alpha / sigma)."""
    sde = PROCESSES[process]
    times = grid(sde, 4, "log_snr")

    def place(lam):
        return sde.time_from_log_snr(torch.tensor(2 * lam, dtype=torch.float64))

    x2 = x3 = start(sde, times[0])
    for t, s in pairwise(times):
        (a_t, _), (a_s, o_s) = sde.marginal(t), sde.marginal(s)
        lam = float(sde.log_snr(t)) / 2
        h = float(sde.log_snr(s)) / 2 - lam
        m = place(lam + h / 2)
        u = sde.marginal(m)[0] / a_t * x2 - sde.sigma(m) * math.expm1(h / 2) * eps(sde, x2, t)
        x2 = a_s / a_t * x2 - o_s * math.expm1(h) * eps(sde, u, m)

        r1, r2 = 1 / 3, 2 / 3
        s1, s2 = place(lam + r1 * h), place(lam + r2 * h)
        (a1, o1), (a2, o2), e = sde.marginal(s1), sde.marginal(s2), eps(sde, x3, t)
        d1 = eps(sde, a1 / a_t * x3 - o1 * math.expm1(r1 * h) * e, s1) - e
        u2 = a2 / a_t * x3 - o2 * math.expm1(r2 * h) * e - o2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
        d2 = eps(sde, u2, s2) - e
        x3 = a_s / a_t * x3 - o_s * math.expm1(h) * e - o_s / r2 * (math.expm1(h) / h - 1) * d2
    # 1e-7: the sampler's step in the log-SNR and this one part by rounding, through bisection for the inner times
    for order, x in ((2, x2), (3, x3)):
        torch.testing.assert_close(sample(sde, "dpm_solver", times, order=order), x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("process", PROCESSES)
def test_dpmpp_2_is_2m_with_the_exact_phi_2(process):
    """arXiv 2211.01095, equation 4.1's expansion: -alpha [phi_1 m_0 - phi_2 (m_0 - m_1) / r] (2M has phi_1 / 2)."""
    sde = PROCESSES[process]
    times = grid(sde)
    lam = [float(sde.log_snr(t)) / 2 for t in times]
    x, before = start(sde, times[0]), None
    for i, (t, s) in enumerate(pairwise(times)):
        h, m = lam[i + 1] - lam[i], data(sde, x, t)
        phi1 = math.expm1(-h)
        slope = 0 if before is None else (m - before) * h / (lam[i] - lam[i - 1])
        alpha, sigma = sde.marginal(s)
        x = sigma / sde.sigma(t) * x - alpha * (phi1 * m - (phi1 / h + 1) * slope)
        before = m
    torch.testing.assert_close(sample(sde, "dpmpp", times, order=2), x, **CLOSE)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("process", PROCESSES)
def test_unipc_is_the_papers_with_its_linear_systems_solved(process, p):
    """arXiv 2302.04867, algorithms 5 to 8 (data prediction): R_p(h) a B(h) = phi_p(h), here with B(h) = e^-h - 1.

    R_p has rows r^0, r^1, ...; phi_p the entries k! phi_(k+1)(-h). The published code takes a = 1/2 in two cases.
    """
    sde = PROCESSES[process]
    times = grid(sde)
    lam = [float(sde.log_snr(t)) / 2 for t in times]
    x = start(sde, times[0])
    m = [data(sde, x, times[0])]
    for i, (t, s) in enumerate(pairwise(times)):
        h, used = lam[i + 1] - lam[i], min(i + 1, p)
        alpha, sigma = sde.marginal(s)
        b_h = math.expm1(-h)
        base = sigma / sde.sigma(t) * x - alpha * b_h * m[-1]

        def advance(r, values, h=h, b_h=b_h, base=base, alpha=alpha):
            if not r:
                return base
            phi, right = b_h / -h - 1, []
            for k in range(1, len(r) + 1):
                right.append(phi * math.factorial(k) / b_h)
                phi = phi / -h - 1 / math.factorial(k + 1)
            nodes = torch.tensor(r, dtype=torch.float64)
            rows = torch.stack([nodes**k for k in range(len(r))])
            a = torch.linalg.solve(rows, torch.tensor(right, dtype=torch.float64))
            return base - alpha * b_h * sum(w * (v - m[-1]) / q for w, v, q in zip(a, values, r, strict=True))

        r = [(lam[i - k] - lam[i]) / h for k in range(1, used)]
        past = [m[-1 - k] for k in range(1, used)]
        x = advance(r, past)
        if i < len(times) - 2:
            end = data(sde, x, s)
            x = advance([*r, 1.0], [*past, end])
            m.append(end)
    torch.testing.assert_close(sample(sde, "unipc", times, order=p), x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("churn", [0.0, 8.0, 60.0])
def test_heun_is_edms_algorithms_1_and_2(churn):
    """arXiv 2206.00364, equation 5 and algorithms 1 (no churn) and 2, on EDM's uniform grid, in sigma alone."""
    sde, n, low, high, rho = EDMSDE(), 12, 0.002, 80.0, 7.0
    sigmas = [(high ** (1 / rho) + i / n * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n + 1)]

    def slope(x, sigma):
        t = torch.tensor((sigma ** (1 / rho) - low ** (1 / rho)) / (high ** (1 / rho) - low ** (1 / rho)))
        return (x - (x + sigma**2 * DATA.score(x, sde, t.double()))) / sigma

    x = first = start(sde, 1.0)
    noise, scale = PathNoise(SEEDS), 1.003
    for sigma, after in pairwise(sigmas):
        gamma = min(churn / n, math.sqrt(2) - 1) if 0.05 <= sigma <= 50 else 0
        hat = sigma * (1 + gamma)
        if gamma:
            z = noise.between(x, sigma / (1 + sigma), after / (1 + after))
            x = x + math.sqrt(hat**2 - sigma**2) * scale * z
        d = slope(x, hat)
        euler = x + (after - hat) * d
        x = x + (after - hat) * (d + slope(euler, after)) / 2
    times = time_grid(sde, "uniform", n, 0.0)
    found = sample(sde, "stochastic_heun", times, first, churn=churn, noise_scale=scale)
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)  # sigma comes back from t: 7th powers of rounded roots
    if churn == 0:
        torch.testing.assert_close(sample(sde, "heun", times, first), x, rtol=1e-6, atol=1e-6)


# On a process and its twin: x / alpha at equal log-SNR.

FLOWS = ("ddim", "euler", "heun", "dpm_solver", "dpmpp", "unipc", "deis", "ipndm")
SNR_ONLY = {name: {} for name in (*FLOWS, "ancestral", "stochastic_heun", "exponential_sde", "dpmpp_sde")}
IN_TIME = {
    "reverse_diffusion": {},  # (2 - alpha_t / alpha_s) x
    "euler_maruyama": {},  # steps and coefficients in t
    "ode": {"method": "rk4"},  # steps in t, of a flow with its linear part
    "adaptive_sde": {},  # steps in t
    "pc": {"predictor": "ancestral"},  # the step size of the corrections carries (alpha_t / alpha_s)^2
}


MORE = [("ddim", {"eta": 0.6}), ("exponential_sde", {"eta": 1.7}), ("deis", {"order": 4, "variable": "rho"})]


@pytest.mark.parametrize(("name", "options"), [*SNR_ONLY.items(), *MORE])
@pytest.mark.parametrize("twin", ["ve", "edm", "cosine", "subvp"])
def test_twins_of_equal_log_snr_give_the_same_images(twin, name, options):
    """Of VP; stochastic samplers with the same path, whose clock is a function of the SNR."""
    vp, images = twins(twin, name, options)
    torch.testing.assert_close(images, vp, rtol=1e-6, atol=1e-6)  # twin's times by inversion of its log-SNR


@pytest.mark.parametrize(("name", "options"), [*IN_TIME.items(), ("deis", {"variable": "time"})])
def test_samplers_with_steps_in_time_tell_twins_apart(name, options):
    vp, images = twins("edm", name, options)
    assert (images - vp).abs().max() > 1e-4


def twins(twin, name, options):
    """Denoised images of VP and of its twin."""
    vp, sde = VPSDE(), {"ve": VESDE(0.01, 50.0), "edm": EDMSDE()}.get(twin) or PROCESSES[twin]
    times = time_grid(vp, "log_snr", 8, 0.05, 0.8)
    matched = sde.time_from_log_snr(vp.log_snr(times))
    x = start(vp, times[0])
    scale = (sde.log_alpha(matched[0]) - vp.log_alpha(times[0])).exp()
    ends = ((vp, times, x), (sde, matched, scale * x))
    return [sample(process, name, at, x, denoise=True, **options) for process, at, x in ends]


def test_every_sampler_is_of_one_kind_or_the_other():
    assert not SNR_ONLY.keys() & IN_TIME.keys()
    assert SNR_ONLY.keys() | IN_TIME.keys() == SAMPLERS.keys()
