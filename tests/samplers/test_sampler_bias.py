"""Discretisation bias without Monte Carlo noise.

On Gaussian data a whole run of a stochastic sampler is affine in its start and in each draw of its noise: dimension by
dimension x = a x_T + b + sum_k c_k z_k. A run whose batch has x_T = 0 without noise, x_T = 1 without noise, and x_T = 0
with z_k = 1 alone for each k, gives a, b and every c_k, and with them the exact mean and variance of the samples. So it
is for methods that remember earlier steps too. (``adaptive_sde``, whose steps follow the state, has a file of its own.)
"""

import math

import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import CORRECTORS, GRIDS, PREDICTORS, SAMPLERS, GeneratorNoise, Noise, Score, get_sampler
from samplers.brownian import BrownianPath
from samplers.langevin import correct
from sde_lib import VPSDE

MEAN = torch.tensor([0.5, -1.0, 0.3, 0.8], dtype=torch.float64)
STD = torch.tensor([0.1, 0.3, 0.7, 1.5], dtype=torch.float64)
T_END = 0.3  # in the midst of the noise: much nearer to the data Euler-Maruyama on VE is of order 2 before it is of 1


class UnitNoise(Noise):
    """A source whose k-th draw is 1 in row 2 + k, and 0 in all others."""

    def __init__(self):
        self.draws = 0

    def start(self, sde, shape, device, dtype):
        raise AssertionError("a start is given")

    def between(self, x, high, low):
        return self.fresh(x)

    def fresh(self, x):
        noise = torch.zeros_like(x)
        noise[2 + self.draws] = 1
        self.draws += 1
        return noise

    def path(self, x):
        self.draws += 1
        return BrownianPath(range(len(x)), x.shape[1:])


def rows(dims, draws):
    """(0, ...), (1, ...), and a row of zeros for each draw."""
    x = torch.zeros(2 + draws, dims, dtype=torch.float64)
    x[1] = 1
    return x


def affine(result):
    """Read a, b and the sum of c_k^2 off the rows that became of ``rows``."""
    zero, one, *noise = result
    return one - zero, zero, (torch.stack(noise) - zero).square().sum(0)


def moments(sde, t, mean, std):
    """Exact mean and variance of x_t."""
    alpha, sigma = sde.marginal(torch.as_tensor(t, dtype=torch.float64))
    return alpha * mean, alpha**2 * std**2 + sigma**2


def gaussian_score(sde, mean, std):
    def score(x, t):
        m, v = moments(sde, t[0], mean, std)
        return (m - x) / v

    return score


def propagate(sampler, sde, mean=MEAN, std=STD):
    """Mean and variance of the sampler's x at t_end, from the exact ones at T; (D,) each."""
    times = sampler.time_grid(sde)
    source, most = UnitNoise(), (len(times) - 1) * (1 + getattr(sampler, "corrector_steps", 0))
    start = rows(len(mean), most)
    result = sampler.sample(sde, gaussian_score(sde, mean, std), start.shape, x_init=start, noise=source)
    a, b, c2 = affine(result.x)
    m, v = moments(sde, times[0], mean, std)
    return a * m + b, a**2 * v + c2


def errors(name, sde, steps, **options):
    """Errors of mean and variance in units of the exact standard deviation and variance."""
    settings = {"grid": "uniform", "t_end": T_END, "denoise": False} | options
    m, v = propagate(get_sampler(name, steps=steps, **settings), sde)
    mean, variance = moments(sde, settings["t_end"], MEAN, STD)
    return (m - mean) / variance.sqrt(), v / variance - 1


def is_stochastic(name):
    """Whether a sampler, with its defaults, draws noise on its way."""
    source = UnitNoise()
    sampler, x = get_sampler(name, steps=3, grid="uniform", denoise=False), torch.zeros(20, 1)
    try:
        sampler.sample(VPSDE(), lambda x, t: -x, x.shape, x_init=x, noise=source)
    except ValueError:  # of an adaptive method, which asked for paths and got none
        assert source.draws
    return source.draws > 0


STOCHASTIC = [name for name in SAMPLERS if name != "adaptive_sde" and is_stochastic(name)]

# Beside the defaults of every stochastic sampler on every process: options on one process of each kind.
VARIANTS = {
    "ancestral": [{"variance": "beta"}],
    "exponential_sde": [{"eta": 0.3}, {"eta": 2.0}],
    "dpmpp_sde": [{"eta": 0.5}, {"eta": 1.5}, {"order": 1}],
    "ddim": [{"eta": 0.4}, {"eta": 1.0}],
    "stochastic_heun": [{"churn": 3.0}],
    "pc": [{"predictor": name} for name in PREDICTORS if name not in ("reverse_diffusion", "none")],
}
CASES = [(process, name, {}) for process in PROCESSES for name in STOCHASTIC]
CASES += [(process, name, one) for process in ("vp", "ve") for name, many in VARIANTS.items() for one in many]

SIZES = {1: (100, 200), 2: (50, 100)}  # of each order; nothing here is random, so that two runs give a rate


def order_of(name, options):
    """Order of the bias. Both methods of order 2 err by their drift alone: the noise of their steps is exact."""
    second = name == "stochastic_heun" or (name == "dpmpp_sde" and options.get("order", 2) == 2)
    return 2 if second else 1


# The bias falls with the steps, at its order.


def test_the_stochastic_samplers_are_those_that_say_so():
    """A method with noise has no order in the step size; the ODE's adaptive default has none either."""
    assert set(STOCHASTIC) == {name for name in SAMPLERS if get_sampler(name).order is None} - {"adaptive_sde", "ode"}
    assert is_stochastic("adaptive_sde")


@pytest.mark.parametrize(("process", "name", "options"), CASES, ids=str)
def test_the_errors_of_mean_and_variance_fall_with_the_steps_at_their_order(process, name, options):
    """Of ``pc``, with snr^2 as 1/steps, so that the corrector's own bias falls as its predictor's does.

    ``stochastic_heun`` has churn 10, so that its gamma is below the bound sqrt(2) - 1 at every size.
    """
    order, found = order_of(name, options), []
    for steps in SIZES[order]:
        own = {"pc": {"snr": math.sqrt(0.5 / steps)}, "stochastic_heun": {"churn": 10.0}}.get(name, {})
        found.append(errors(name, PROCESSES[process], steps, **own | options))
    means, variances = ([float(e.norm()) for e in family] for family in zip(*found, strict=True))
    assert oracles.slope(SIZES[order], variances) == pytest.approx(-order, abs=0.15)
    assert variances[-1] < (0.15 if order == 1 else 0.01)
    if max(means) > 1e-12:  # zero where that is exact, as it is for VE
        assert oracles.slope(SIZES[order], means) == pytest.approx(-1, abs=0.15)
        assert means[-1] < 1e-2


@pytest.mark.parametrize("process", PROCESSES)
def test_euler_maruyama_has_the_leading_error_of_the_theory(process):
    """Steps * error -> (T - t_end) * integral of the local errors, each damped on its way to t_end.

    With V = alpha^2 v + sigma^2, a step of length h adds h^2 [V (f + g^2 / V)^2 - V'' / 2], and an error of the
    variance at t reaches t_end times (V_end alpha_t / (V_t alpha_end))^2.
    """
    sde = PROCESSES[process]
    t = torch.linspace(T_END, sde.T, 200_001, dtype=torch.float64)[:, None].requires_grad_()
    alpha, _ = sde.marginal(t)
    _, v = moments(sde, t, MEAN, STD)
    f, g2 = sde.drift_coeff(t), sde.diffusion(t) ** 2
    curvature = torch.stack([torch.autograd.grad(c.sum(), t, retain_graph=True)[0] for c in (2 * f * v + g2).T], 1)
    local = v * (f + g2 / v) ** 2 - curvature[..., 0] / 2
    damping = (v[0] * alpha / (v * alpha[0])) ** 2
    predicted = (sde.T - T_END) * torch.trapezoid(local * damping, t[:, 0], dim=0).detach()

    scale = moments(sde, T_END, MEAN, STD)[1]
    coarse, fine = (steps * errors("euler_maruyama", sde, steps)[1] * scale for steps in (300, 600))
    limit = 2 * fine - coarse  # Richardson: leaves order 1 / steps^2
    assert (limit - predicted).abs().max() < 0.01 * predicted.abs().max()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("process", PROCESSES)
def test_every_grid_leads_to_the_same_law(process, grid):
    coarse, fine = (errors("ancestral", PROCESSES[process], steps, grid=grid)[1] for steps in (100, 200))
    assert fine.abs().max() < 0.08
    assert (fine / coarse).allclose(torch.tensor(0.5, dtype=torch.float64), atol=0.04)


# Where a sampler is exact.


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_mean_of_ancestral_sampling_is_exact(process, variance):
    """A step's mean is E[x_s | x_t]."""
    for steps in (1, 7):
        mean_error, _ = errors("ancestral", PROCESSES[process], steps, variance=variance)
        assert mean_error.abs().max() < 1e-12


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("process", PROCESSES)
def test_ancestral_sampling_of_a_single_point_is_exact_on_any_grid(process, grid):
    sde, point = PROCESSES[process], torch.zeros(4, dtype=torch.float64)
    for steps in (1, 7):
        sampler = get_sampler("ancestral", steps=steps, grid=grid, t_end=T_END, denoise=False)
        m, v = propagate(sampler, sde, MEAN, point)
        mean, variance = moments(sde, T_END, MEAN, point)
        assert m.allclose(mean, rtol=1e-9)
        assert v.allclose(variance, rtol=1e-9)


@pytest.mark.parametrize("process", ["vp", "cosine"])
def test_the_variance_beta_is_exact_for_noise_of_unit_variance(process):
    sde, one = PROCESSES[process], torch.ones(1, dtype=torch.float64)
    for steps in (1, 7):
        options = {"steps": steps, "t_end": T_END, "denoise": False}
        _, v = propagate(get_sampler("ancestral", variance="beta", **options), sde, 0 * one, one)
        assert v.allclose(one, rtol=1e-12)
        _, shrunk = propagate(get_sampler("ancestral", **options), sde, 0 * one, one)
        assert (shrunk < 0.99).all()


@pytest.mark.parametrize("process", PROCESSES)
def test_ancestral_variances_bracket_the_truth(process):
    """The optimal variance lies between those of a single point and of pure noise (arXiv 2201.06503, theorem 2)."""
    sde = PROCESSES[process]
    small, large = (errors("ancestral", sde, 50, variance=v)[1] for v in ("posterior", "beta"))
    assert (small < 0).all()
    assert (large > small).all()
    inside = STD <= 1
    assert (large[inside] > 0).all()


# Predictor-corrector.


@pytest.mark.parametrize("predictor", [name for name in PREDICTORS if name != "none"])
@pytest.mark.parametrize("process", PROCESSES)
def test_without_corrections_pc_is_its_predictor(process, predictor):
    sde = PROCESSES[process]
    score = oracles.mixture_2d().score_fn(sde)
    alone, pc = (
        get_sampler(name, steps=12, grid="uniform", t_end=T_END, **options).sample(
            sde, score, (5, 2), generator=oracles.generator(3), dtype=torch.float64
        )
        for name, options in ((predictor, {}), ("pc", {"predictor": predictor, "corrector_steps": 0}))
    )
    assert torch.equal(alone.x, pc.x)
    assert alone.nfe == pc.nfe


@pytest.mark.parametrize("process", PROCESSES)
def test_without_a_predictor_and_corrections_nothing_moves(process):
    sampler = get_sampler("pc", predictor="none", corrector_steps=0, steps=4, denoise=False)
    x = torch.randn(3, 2, generator=oracles.generator())
    result = sampler.sample(PROCESSES[process], lambda x, t: -x, (3, 2), x_init=x)
    assert torch.equal(result.x, x)
    assert result.nfe == 0


@pytest.mark.parametrize("process", PROCESSES)
def test_langevin_of_a_fixed_step_settles_at_its_closed_form(process):
    """N(m, v): x <- x + e (m - x) / v + sqrt(2 e) z settles at mean m and variance v / (1 - e / (2 v))."""
    sde, t = PROCESSES[process], torch.tensor(0.3, dtype=torch.float64)
    target, v = moments(sde, t, MEAN, STD)
    snrs, ratio2 = (0.05, 0.1, 0.2), torch.tensor(0.9, dtype=torch.float64)
    inflation = []
    for snr in snrs:
        score = Score(sde, gaussian_score(sde, MEAN, STD), UnitNoise())
        a, b, c2 = affine(correct(score, rows(4, 1), t, ratio2, CORRECTORS["annealed_langevin"], snr))
        settled = c2 / (1 - a**2)
        size = 2 * 0.9 * (snr * sde.sigma(t)) ** 2
        assert (b / (1 - a)).allclose(target, rtol=1e-9)
        assert settled.allclose(v / (1 - size / (2 * v)), rtol=1e-9)
        inflation.append(float((settled / v - 1).mean()))
    assert oracles.slope(snrs, inflation) == pytest.approx(2, abs=0.05)


def test_langevin_of_measured_norms_settles_at_its_closed_form():
    """e = 2 snr^2 |z|^2 / |s|^2 follows the variance w that it makes: e = 2 snr^2 v^2 / w, so that w = v (1 + snr^2).

    The norms are over 1000 dimensions, and the variance is read off 10^6 numbers: standard error 0.14%.
    """
    sde, t = VPSDE(), torch.tensor(0.4, dtype=torch.float64)
    v, snr = 0.5 * sde.marginal(t)[0] ** 2 + sde.sigma(t) ** 2, 0.3
    score = Score(sde, lambda x, t: -x / v.float(), GeneratorNoise(oracles.generator()))
    x = v.sqrt().float() * torch.randn(1000, 1000, generator=oracles.generator(1))
    for _ in range(40):
        x = correct(score, x, t, torch.tensor(1.0), CORRECTORS["langevin"], snr)
    assert float(x.square().mean() / v) == pytest.approx(1 + snr**2, abs=4 * 0.0014 * (1 + snr**2))


SONGS = ("reverse_diffusion", "ancestral", "euler_maruyama")
LIMITS = [(process, name) for process in PROCESSES for name in SONGS]
LIMITS += [(process, name) for process in ("vp", "ve") for name in PREDICTORS if name not in (*SONGS, "none")]


@pytest.mark.parametrize(("process", "predictor"), LIMITS)
def test_pc_of_many_steps_inflates_the_variance_by_the_square_of_the_snr(process, predictor):
    """With ever more steps the corrector wins: at a single point v = sigma^2, and it settles at sigma^2 / (1 - snr^2).

    At 300 steps the predictor still shifts that by a few per cent of it; the bound is a twentieth. (Without any
    predictor the variance is still above that, by as much as sigma^2 falls while Langevin dynamics relaxes.)
    """
    sde, point, snr = PROCESSES[process], torch.zeros(1, dtype=torch.float64), 0.32
    options = {"predictor": predictor, "corrector_steps": 2, "snr": snr, "denoise": False}
    _, v = propagate(get_sampler("pc", steps=300, t_end=T_END, grid="log_snr", **options), sde, MEAN[:1], point)
    inflation = float(v / moments(sde, T_END, MEAN[:1], point)[1])
    assert inflation - 1 == pytest.approx(snr**2 / (1 - snr**2), rel=0.05)
