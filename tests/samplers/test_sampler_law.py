"""Every sampler on every process draws from the law that its exact score belongs to.

The arithmetic. With exact scores two errors remain: the statistical one, and the discretisation bias of order 1/steps.
For first-order samplers on an equal grid in log-SNR the bias of the variance is at most span / (2 steps), with span
the log-SNR between the ends (17 at most here): 2.1% at 400 steps in the plane, 1.1% at 800 on images. The most
sensitive statistic, the energy, has a standard error of 1/sqrt(1000) = 3.2% in the plane and
sqrt(2 / (192 * 64)) = 1.3% on images, so the bias is below 0.85 of it. The bound of 4.5 standard errors leaves 3.65
for chance: 1.3e-4 for the energy, 3e-6 for statistics without bias; about 1% for any of the 96 energies of this file.
"""

import math

import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import CORRECTORS, PREDICTORS, SAMPLERS, get_sampler
from sde_lib import SDES, GaussianMixture

T_END = 0.1
PLANE_RUN = {"n": 1000, "steps": 400}
IMAGE_RUN = {"n": 64, "steps": 800}
SIGMAS = 4.5
OWN_OPTIONS = {
    "pc": {"snr": 0.05}
}  # the corrector's bias in the variance is snr^2 = 0.25% and does not fall with steps

PLANE = oracles.mixture_2d()
IMAGE = (3, 8, 8)
IMAGE_STD = torch.tensor([0.35, 0.2], dtype=torch.float64)
TEMPLATE = oracles.mixture(IMAGE)
IMAGES = GaussianMixture(TEMPLATE.weights, TEMPLATE.means.reshape(2, *IMAGE), std=IMAGE_STD)


def image_score(sde):
    """Score of ``IMAGES`` by inner products alone: independent of, and much faster than, the general mixture."""
    weights, means, variances = IMAGES.weights.float(), IMAGES.means.float(), IMAGE_STD.square().float()

    def score(x, t):
        alpha, sigma = sde.marginal(t[0].double())
        alpha, spread = alpha.to(x), alpha.to(x) ** 2 * variances.to(x) + sigma.to(x) ** 2
        flat, centres = x.flatten(1), alpha * means.to(x)
        square = flat.square().sum(1, keepdim=True) - 2 * flat @ centres.T + centres.square().sum(1)
        share = torch.softmax(weights.to(x).log() - 0.5 * square / spread - 0.5 * flat.shape[1] * spread.log(), 1)
        pull = share / spread
        return (pull @ centres - pull.sum(1, keepdim=True) * flat).reshape(x.shape)

    return score


def draw(sampler, process, law, score, n, **options):
    sde, generator = PROCESSES[process], oracles.generator(1)
    settings = {"grid": "log_snr", "t_end": T_END, "denoise": False} | OWN_OPTIONS.get(sampler, {}) | options
    # A user's process need not end in its prior: this one has alpha = 0.1 there.
    start = None if process in SDES else law.marginal(sde, sde.T).sample(n, generator=generator)
    run = get_sampler(sampler, **settings)
    return run.sample(sde, score, (n, *law.shape), x_init=start, generator=generator).x


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_samples_of_a_correlated_mixture_in_the_plane_have_its_law(process, sampler):
    sde = PROCESSES[process]
    x = draw(sampler, process, PLANE, PLANE.score_fn(sde), **PLANE_RUN)
    oracles.assert_law(x, PLANE.marginal(sde, T_END), SIGMAS)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_samples_of_a_mixture_of_images_have_its_law(process, sampler):
    sde = PROCESSES[process]
    x = draw(sampler, process, IMAGES, image_score(sde), **IMAGE_RUN)
    law = IMAGES.marginal(sde, T_END)
    oracles.assert_law(x, law, SIGMAS)

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
    options = {"predictor": predictor, "corrector": corrector, "corrector_steps": 2, "n": 1000, "steps": 250}
    x = draw("pc", "subvp", PLANE, PLANE.score_fn(PROCESSES["subvp"]), **options)
    oracles.assert_law(x, PLANE.marginal(PROCESSES["subvp"], T_END), SIGMAS)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_fast_score_of_images_is_that_of_the_general_mixture(process):
    sde = PROCESSES[process]
    for t in (0.05, 0.4, 1.0):
        x = IMAGES.marginal(sde, t).sample(5, generator=oracles.generator(), dtype=torch.float64)
        exact = IMAGES.score(x, sde, t)
        fast = image_score(sde)(x, torch.full((5,), t, dtype=torch.float64))
        assert (fast - exact).norm() < 1e-5 * exact.norm()  # its parameters are float32


def test_the_bias_is_below_the_statistical_error():
    ends = (sde.log_snr(torch.tensor([sde.T, T_END], dtype=torch.float64)) for sde in PROCESSES.values())
    span = max(float(end - start) for start, end in ends)
    for run, law in ((PLANE_RUN, PLANE), (IMAGE_RUN, IMAGES)):
        energy_error = math.sqrt(2 / (math.prod(law.shape) * run["n"]))
        assert 0 < span / (2 * run["steps"]) < 0.85 * energy_error
