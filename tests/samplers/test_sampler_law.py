"""Every sampler on every process draws from the law that its exact score belongs to.

Two tests of every law: mean, covariance, weights and energy against their exact values with exact standard errors
(``oracles.assert_law``), and the energy distance to independent exact samples against a permutation threshold of level
1e-4 (``oracles.assert_same_law``), which sees every other difference of the laws.

The arithmetic. With exact scores two errors remain: the statistical one, and the discretisation bias, of order 1/steps
or less. For first-order samplers on an equal grid in log-SNR the bias of the variance is at most span / (2 steps), with
span the log-SNR between the ends (15.6 at most here): 3.1% at 250 steps in the plane, 1.2% at 650 on images. The most
sensitive statistic, the energy, has a standard error of 1/sqrt(600) = 4.1% in the plane and
sqrt(2 / (192 * 48)) = 1.5% on images, so the bias is below 0.85 of it. The bound of 4.5 standard errors leaves 3.65
for chance: 1.3e-4 for the energy, 3e-6 for statistics without bias; a few per cent for any of the energies of this
file. (The biases themselves: test_sampler_bias.py and test_sampler_adaptive.py, without chance.)
"""

import math

import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import CORRECTORS, PREDICTORS, SAMPLERS, get_sampler
from sde_lib import SDES, GaussianMixture

LOG_SNR_END = 2.0  # at the end of every run: noise of 0.37 of the signal
SIGMAS = 4.5
RUNS = {"plane": {"n": 600, "steps": 250}, "image": {"n": 48, "steps": 650}}
HIGHER_ORDER_STEPS = 60  # of a deterministic method of order 2 or more: its bias is some 1e-3, or less
OWN_OPTIONS = {
    "pc": {"snr": 0.05},  # the corrector's bias in the variance is snr^2 = 0.25% and does not fall with the steps
    "stochastic_heun": {"steps": 80, "churn": 6.0},  # of order 2: below 1% here (test_sampler_bias.py)
    "adaptive_sde": {"rtol": 0.1, "atol": 0.03},  # 0.05 off its own limit at most (test_sampler_adaptive.py)
}

# One entry of each class: "euler" is "ddim" under another name.
NAMES = list({kind: name for name, kind in reversed(SAMPLERS.items())}.values())[::-1]

PLANE = oracles.mixture_2d()
IMAGE = (3, 8, 8)
IMAGE_STD = torch.tensor([0.35, 0.2], dtype=torch.float64)
TEMPLATE = oracles.mixture(IMAGE)
IMAGES = GaussianMixture(TEMPLATE.weights, TEMPLATE.means.reshape(2, *IMAGE), std=IMAGE_STD)


def end(sde):
    """Time at which the log-SNR is LOG_SNR_END."""
    return float(sde.time_from_log_snr(torch.tensor(LOG_SNR_END, dtype=torch.float64)))


def image_score(sde):
    """Score of ``IMAGES`` by inner products alone: independent of, and much faster than, the general mixture."""
    weights, means, variances = IMAGES.weights.float(), IMAGES.means.float(), IMAGE_STD.square().float()

    def score(x, t):
        alpha, sigma = (c[:, None] for c in sde.marginal(t.double()))
        alpha, spread = alpha.to(x), alpha.to(x) ** 2 * variances.to(x) + sigma.to(x) ** 2  # (B, 1), (B, 2)
        flat, centres = x.flatten(1), means.to(x)
        square = flat.square().sum(1, keepdim=True) - 2 * alpha * flat @ centres.T + alpha**2 * centres.square().sum(1)
        share = torch.softmax(weights.to(x).log() - 0.5 * square / spread - 0.5 * flat.shape[1] * spread.log(), 1)
        pull = share / spread
        return (alpha * pull @ centres - pull.sum(1, keepdim=True) * flat).reshape(x.shape)

    return score


def draw(sampler, process, law, score, kind, **options):
    """(Samples of the sampler, the law of x at its end, as many exact samples of that)."""
    sde, generator = PROCESSES[process], oracles.generator(1)
    t_end, n, steps = end(sde), *RUNS[kind].values()
    if (get_sampler(sampler).order or 1) > 1:
        steps = HIGHER_ORDER_STEPS
    settings = {"grid": "log_snr", "steps": steps, "t_end": t_end, "denoise": False}
    # A user's process need not end in its prior: this one has alpha = 0.1 there.
    start = None if process in SDES else law.marginal(sde, sde.T).sample(n, generator=generator)
    run = get_sampler(sampler, **settings | OWN_OPTIONS.get(sampler, {}) | options)
    x = run.sample(sde, score, (n, *law.shape), x_init=start, generator=generator).x
    final = law.marginal(sde, t_end)
    return x, final, final.sample(n, generator=oracles.generator(2))


def test_every_sampler_is_among_the_tested():
    assert {SAMPLERS[name] for name in NAMES} == set(SAMPLERS.values())


@pytest.mark.parametrize("sampler", NAMES)
@pytest.mark.parametrize("process", PROCESSES)
def test_samples_of_a_correlated_mixture_in_the_plane_have_its_law(process, sampler):
    x, law, exact = draw(sampler, process, PLANE, PLANE.score_fn(PROCESSES[process]), "plane")
    oracles.assert_law(x, law, SIGMAS)
    oracles.assert_same_law(x, exact)


@pytest.mark.parametrize("sampler", NAMES)
@pytest.mark.parametrize("process", ["vp", "ve", "user"])  # one of each kind: the plane has them all, and time is short
def test_samples_of_a_mixture_of_images_have_its_law(process, sampler):
    x, law, exact = draw(sampler, process, IMAGES, image_score(PROCESSES[process]), "image")
    oracles.assert_law(x, law, SIGMAS)
    oracles.assert_same_law(x, exact)

    # The coordinate between the two means: it is where mass would be lost on the way from one to the other.
    axis = law.means[0] - law.means[1]
    axis = axis / axis.norm()
    along = GaussianMixture(
        law.weights, (law.means @ axis)[:, None], torch.einsum("i,kij,j->k", axis, law.covariances, axis)[:, None, None]
    )
    oracles.assert_law((x.double().flatten(1) @ axis)[:, None], along, SIGMAS)


@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_pair_of_predictor_and_corrector_has_the_law(predictor, corrector):
    """The predictor "none" leaves all to the corrector, which then needs a larger snr, and more updates, to follow."""
    options = {"predictor": predictor, "corrector": corrector, "corrector_steps": 2, "steps": 250}
    if predictor == "none":
        options |= {"snr": 0.16, "corrector_steps": 4, "steps": 400}
    x, law, exact = draw("pc", "subvp", PLANE, PLANE.score_fn(PROCESSES["subvp"]), "plane", **options)
    oracles.assert_law(x, law, SIGMAS)
    oracles.assert_same_law(x, exact)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_fast_score_of_images_is_that_of_the_general_mixture(process):
    sde = PROCESSES[process]
    for t in (0.05, 0.4, 1.0):
        x = IMAGES.marginal(sde, t).sample(5, generator=oracles.generator(), dtype=torch.float64)
        times = torch.linspace(0.5 * t, t, 5, dtype=torch.float64)
        exact = IMAGES.score(x, sde, times)
        fast = image_score(sde)(x, times)
        assert (fast - exact).norm() < 1e-5 * exact.norm()  # its parameters are float32


def test_the_bias_is_below_the_statistical_error():
    ends = (sde.log_snr(torch.tensor(sde.T, dtype=torch.float64)) for sde in PROCESSES.values())
    span = max(LOG_SNR_END - float(start) for start in ends)
    for kind, law in (("plane", PLANE), ("image", IMAGES)):
        energy_error = math.sqrt(2 / (math.prod(law.shape) * RUNS[kind]["n"]))
        assert 0 < span / (2 * RUNS[kind]["steps"]) < 0.85 * energy_error
