"""Noise that belongs to an image: the law of its Brownian path, and that neither steps nor batch change it."""

import math
from itertools import pairwise

import oracles
import pytest
import torch
from scipy import stats

from samplers import SAMPLERS, GeneratorNoise, PathNoise, get_sampler
from samplers.brownian import LEVELS, BrownianPath, normal
from sde_lib import VPSDE

ROUNDING = 4e-6  # of sums of float32 increments of size 1
CELL = 2.0**-LEVELS  # of the finest level: below it intervals are cut where they are read
IRREGULAR = [1.0, 0.83, 0.5, 0.31, 0.3, 0.123, 0.0371, 1.3 * CELL, 0.9 * CELL, 1e-5, 0.0]
TIMES = {
    "coarse": [1.0, 0.75, 0.5, 0.0],
    "irregular": IRREGULAR,
    "within one cell": [1.0, *(CELL * (300 + f) for f in (0.9, 0.7, 0.69, 0.3, 0.01)), 0.0],
    "of the last level": [1.0, *(CELL * k for k in (700, 699, 698, 3, 2, 1)), 0.0],
}


def increments(path, times):
    """W(a) - W(b) for neighbours a > b, (steps, B, *)."""
    return torch.stack([path.increment(a, b) for a, b in pairwise(times)])


def assert_standard(samples, sigmas=4.5):
    """Rows (k, n) are independent standard normals: mean, covariance and fourth moment, with exact standard errors.

    Of some 60 entries the largest passes 4.5 by chance once in 2500 runs; the seeds are fixed.
    """
    n = samples.shape[1]
    samples = samples.double()
    covariance = samples @ samples.T / n
    assert samples.mean(1).abs().max() < sigmas / math.sqrt(n)
    assert ((covariance.diagonal() - 1) / math.sqrt(2 / n)).abs().max() < sigmas
    assert (covariance - covariance.diagonal().diag()).abs().max() < sigmas / math.sqrt(n)
    assert ((samples**4).mean(1) - 3).abs().max() < sigmas * math.sqrt(96 / n)


# The law of the path.


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_w_has_covariance_min_s_t_at_any_times(times):
    """From 4 seeds of 50,000 numbers each: the standard error of an entry is sqrt((C_ii C_jj + C_ij^2) / 200,000)."""
    steps = increments(BrownianPath(range(4), (50_000,)), times).flatten(1).double()
    lengths = -torch.tensor(times, dtype=torch.float64).diff()
    assert_standard(steps / lengths.sqrt()[:, None])
    w = steps.flip(0).cumsum(0)  # from 0 upwards, where W is 0
    t = torch.tensor(times[:-1], dtype=torch.float64).flip(0)
    law = torch.minimum(t[:, None], t)
    error = ((t[:, None] * t + law**2) / w.shape[1]).sqrt()
    assert ((w @ w.T / w.shape[1] - law) / error).abs().max() < 4.5


def test_the_law_holds_over_seeds():
    """One number of each of 2000 seeds, rather than many of one seed."""
    times = [1.0, 0.6, 0.35, 0.0]
    steps = increments(BrownianPath(range(2000), (1,)), times)[..., 0]
    assert_standard(steps / torch.tensor(times).diff().neg().sqrt()[:, None])
    assert stats.kstest(steps.sum(0).numpy(), "norm").pvalue > 1e-3


# The path is one.


def test_increments_add_up():
    total = BrownianPath([3, 4], (5,)).increment(1.0, 0.0)
    for times in ([1.0, 0.5, 0.0], *TIMES.values()):
        parts = increments(BrownianPath([3, 4], (5,)), times)
        torch.testing.assert_close(parts.sum(0), total, rtol=0, atol=ROUNDING)


def test_coarse_and_fine_readings_agree_at_their_common_times():
    """Down to the last level; the finest steps here are half a cell, between which the common times lie."""
    readings = {}
    for n in (4, 64, 1024, 2048):
        w = increments(BrownianPath([11], (3,)), [1 - k / n for k in range(n + 1)]).cumsum(0)
        readings[n] = w[n // 4 - 1 :: n // 4]  # at 3/4, 1/2, 1/4, 0
    for n in (64, 1024, 2048):
        torch.testing.assert_close(readings[n], readings[4], rtol=0, atol=10 * ROUNDING)  # 2048 terms


def test_going_back_and_repeating_a_step_stay_on_the_path():
    """Of steps longer than a cell: within one, where the path is cut as it is read, a shorter step is another draw."""
    times = [1.0, 0.8123, 0.5551, 0.21, 0.05]
    expected = increments(BrownianPath([5], (4,)), times)
    path = BrownianPath([5], (4,))
    for (a, b), value in zip(pairwise(times), expected, strict=True):
        middle = (a + b) / 2
        rejected = path.increment(a, b)
        torch.testing.assert_close(rejected, value, rtol=0, atol=ROUNDING)
        shorter = [path.increment(a, middle), path.increment(middle, b)]  # after a rejection
        torch.testing.assert_close(sum(shorter), value, rtol=0, atol=ROUNDING)
        path.increment(0.03, 0.01)
        torch.testing.assert_close(path.increment(a, b), value, rtol=0, atol=ROUNDING)  # back, from far below
    torch.testing.assert_close(path.increment(0.9, 0.1) + path.increment(0.1, 0.05), path.increment(0.9, 0.05))


def test_a_reading_at_any_place_is_on_the_same_path():
    """By another algorithm: one descent of the tree for each seed's own place."""
    path = BrownianPath(range(6), (4,))
    whole = path.increment(1.0, 0.0)
    torch.testing.assert_close(path.at(torch.ones(6)), whole, rtol=0, atol=ROUNDING)
    assert not path.at(torch.zeros(6)).any()
    places = torch.tensor([1, 100, 511, 512, 777, 1023]) / 1024  # down to the last level both trees have
    read = path.at(places)
    for k, place in enumerate(places.tolist()):
        alone = BrownianPath([k], (4,))
        torch.testing.assert_close(read[k : k + 1], alone.increment(place, 0.0), rtol=0, atol=10 * ROUNDING)


def test_readings_at_any_place_have_the_law_of_brownian_motion():
    places = torch.tensor([0.05, 0.3001, 0.3003, 0.9], dtype=torch.float64)
    path = BrownianPath(range(4000), (1,))
    w = torch.stack([path.at(c.expand(4000))[:, 0] for c in places]).double()
    steps = w.diff(dim=0, prepend=torch.zeros(1, 4000, dtype=torch.float64))
    assert_standard(steps / places.diff(prepend=torch.zeros(1, dtype=torch.float64)).sqrt()[:, None])


def test_memory_does_not_grow_with_the_steps():
    path = BrownianPath([1], (2,))
    draw = torch.rand(5000, generator=oracles.generator(), dtype=torch.float64).sort(descending=True).values
    longest = 0
    for a, b in zip([1.0, *draw.tolist()], [*draw.tolist(), 0.0], strict=True):
        path.increment(a, b)
        longest = max(longest, len(path._pending))
    assert 2 < longest <= LEVELS + 2


# An image's noise is its own.


def draws(noise, n, dtype):
    """Start, noise of three steps, and two fresh draws, (6, n, 2, 3)."""
    x = noise.start(VPSDE(), (n, 2, 3), None, dtype)
    steps = [noise.between(x, a, b) for a, b in ((0.99, 0.7), (0.7, 0.31), (0.31, 0.3105 - CELL))]
    return torch.stack([x, *steps, noise.fresh(x), noise.fresh(x)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seeds", [[7], [7, 1, 2**63 - 1], [2**63 - 1, 7], [0, 1, 2, 3, 7, 9]])
def test_an_images_noise_has_the_same_bits_in_any_batch(seeds, dtype):
    alone = {seed: draws(PathNoise([seed]), 1, dtype) for seed in seeds}
    together = draws(PathNoise(seeds), len(seeds), dtype)
    assert together.dtype == dtype
    for k, seed in enumerate(seeds):
        assert torch.equal(together[:, k : k + 1], alone[seed])
    single, double = (draws(PathNoise(seeds), len(seeds), d) for d in (torch.float32, torch.float64))
    assert torch.equal(double.float(), single)


def test_seeds_streams_and_places_are_independent():
    """Every pair among seeds 0 to 3, start, path, halvings, cuts and fresh draws, by 40,000 numbers each."""
    places = [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 2, 1), (0, LEVELS + 2, 5), (1, 0, 0), (2, 1, 0), (2, 2, 0)]
    seeds = torch.arange(4)
    rows = torch.cat([normal(seeds, (40_000,), place) for place in places])
    assert_standard(rows, sigmas=5)  # 496 pairs: beyond 5 once in 3500


def test_the_noise_of_a_step_is_the_normalised_increment_of_the_path():
    x = torch.zeros(2, 3, dtype=torch.float64)
    noise, path = PathNoise([4, 8]), BrownianPath([4, 8], (3,))
    for a, b in ((0.9, 0.65), (0.65, 0.1)):
        expected = path.increment(a, b).double() / math.sqrt(a - b)
        torch.testing.assert_close(noise.between(x, a, b), expected, rtol=1e-6, atol=0)
    assert not noise.between(x, 0.1, 0.1).any()


@pytest.mark.parametrize("call", ["start", "between"])
def test_a_wrong_number_of_seeds_is_explained(call):
    noise, x = PathNoise([1, 2]), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"noise for 2 images, but (3 samples were asked for|x has 3)"):
        noise.start(VPSDE(), (3, 4), None, None) if call == "start" else noise.between(x, 0.5, 0.4)


# Samplers on it.

SEEDS = list(range(20, 28))


def draw(name, noise, n, x_init=None, **options):
    sde, data = VPSDE(), oracles.mixture_2d()
    sampler = get_sampler(name, **options)
    return sampler.sample(sde, data.score_fn(sde), (n, 2), x_init=x_init, noise=noise, dtype=torch.float64).x


@pytest.mark.parametrize("name", ["ancestral", "euler_maruyama", "dpmpp_sde", "stochastic_heun"])
def test_runs_of_more_steps_approach_the_same_images_on_a_path_and_only_there(name):
    """Not pc, whose corrector draws fresh noise in each step, nor adaptive_sde, which has no steps to set."""
    sizes, seeds = (50, 100, 200, 400), SEEDS[:4]
    options = {"t_end": 0.05, "grid": "log_snr"}
    fine = draw(name, PathNoise(seeds), 4, steps=1600, **options)
    start = PathNoise(seeds).start(VPSDE(), (4, 2), None, torch.float64)

    def error(noise, n):
        return float((draw(name, noise, 4, x_init=start, steps=n, **options) - fine).norm())

    on_path = [error(PathNoise(seeds), n) for n in sizes]
    fresh = [error(GeneratorNoise(oracles.generator(1)), n) for n in (50, 400)]
    assert oracles.slope(sizes, on_path) < -0.5, on_path
    assert on_path[-1] < 0.3 * on_path[0], on_path
    assert fresh[1] > 0.7 * fresh[0], fresh
    assert min(fresh) > 5 * on_path[-1], (fresh, on_path)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_the_same_in_any_batch(name):
    """To rounding of the score's matrix products; ``ode`` steps for its worst image, so within its tolerance.

    pc runs with its default corrector: that of "langevin" takes means of norms over the batch.
    """
    tolerance = 3e-4 if name == "ode" else 1e-10
    options = {"rtol": 0.3, "atol": 0.1} if name == "adaptive_sde" else {"steps": 12}
    together = draw(name, PathNoise(SEEDS), 8, **options)
    assert together.std(0).min() > 0.1  # the images do differ
    for seeds in ([SEEDS[2]], SEEDS[1:4], SEEDS[:1]):
        found = draw(name, PathNoise(seeds), len(seeds), **options)
        first = SEEDS.index(seeds[0])
        torch.testing.assert_close(found, together[first : first + len(seeds)], rtol=0, atol=tolerance)
    backwards = draw(name, PathNoise(SEEDS[::-1]), 8, **options)
    torch.testing.assert_close(backwards.flip(0), together, rtol=0, atol=tolerance)
