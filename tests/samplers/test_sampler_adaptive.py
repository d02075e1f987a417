"""The adaptive solver of the reverse SDE approaches the solution on the same Brownian path as its tolerances fall."""

import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import PathNoise, SamplingError, get_sampler

LAW = oracles.mixture_2d()
SEEDS = (3, 1, 4)


def start(sde):
    return LAW.marginal(sde, sde.T).sample(len(SEEDS), generator=oracles.generator(3), dtype=torch.float64)


def solve(name, sde, seeds=SEEDS, x=None, **options):
    x = start(sde) if x is None else x
    sampler = get_sampler(name, t_end=0.1, denoise=False, **options)
    return sampler.sample(sde, LAW.score_fn(sde), x.shape, x_init=x, noise=PathNoise(seeds))


@pytest.mark.parametrize("process", PROCESSES)
def test_the_error_on_a_path_falls_with_the_tolerances(process):
    """Against another method on the same paths, with 300 steps (a strong error below 0.01).

    Nothing is random here, so no error of the law hides in statistical noise. Noise drawn afresh for a repeated step
    would follow another path, and be off by the spread of the samples; the bound is a twentieth of that.
    """
    sde = PROCESSES[process]
    exact = solve("dpmpp_sde", sde, steps=300, grid="log_snr").x
    loose, tight = (solve("adaptive_sde", sde, rtol=tol, atol=tol / 3) for tol in (0.4, 0.05))
    first, second = (float((run.x - exact).square().mean().sqrt()) for run in (loose, tight))
    assert second < 0.5 * first
    assert second < 0.05 * float(exact.std())
    assert tight.nfe > 2 * loose.nfe


def test_an_image_does_not_depend_on_its_batch():
    """Each has its own steps; the companions only make the batch wait."""
    sde = PROCESSES["vp"]
    x = start(sde)
    together = solve("adaptive_sde", sde, x=x, rtol=0.1, atol=0.03)
    for k, seed in enumerate(SEEDS):
        alone = solve("adaptive_sde", sde, seeds=[seed], x=x[k : k + 1], rtol=0.1, atol=0.03)
        torch.testing.assert_close(alone.x[0], together.x[k], rtol=1e-9, atol=1e-9)
        assert alone.nfe <= together.nfe


@pytest.mark.parametrize("process", PROCESSES)
def test_one_accepted_step_is_the_mean_of_euler_and_its_repetition(process):
    """arXiv 2105.14080, algorithm 1, with tolerances so loose that one step leads to the end."""
    sde, x = PROCESSES[process], start(PROCESSES[process])
    grid = torch.tensor([0.7, 0.6], dtype=torch.float64)
    sampler = get_sampler("adaptive_sde", grid=grid, rtol=1e3, atol=1e3, first_step=1.0, denoise=False)
    found = sampler.sample(sde, LAW.score_fn(sde), x.shape, x_init=x, noise=PathNoise(SEEDS))
    clock = [float(sigma / (alpha + sigma)) for alpha, sigma in (sde.marginal(t) for t in grid)]
    path = PathNoise(SEEDS).path(x)
    w = [path.at(x.new_full((len(x),), c)) for c in clock]
    z = (w[0] - w[1]).double() / (clock[0] - clock[1]) ** 0.5

    def drift(x, t):
        return sde.reverse(LAW.score_fn(sde)).sde(x, float(t))

    (d, g), h = drift(x, grid[0]), float(grid[0] - grid[1])
    euler = x - h * d + h**0.5 * g[:, None] * z
    d, g = drift(euler, grid[1])
    again = x - h * d + h**0.5 * g[:, None] * z
    assert found.nfe == 2
    torch.testing.assert_close(found.x, (euler + again) / 2, rtol=1e-9, atol=1e-9)


def test_it_gives_up_after_max_nfe_and_says_what_to_try():
    with pytest.raises(
        SamplingError,
        match=r"still at t = 0\.\d+ after max_nfe = 20 evaluations: raise max_nfe, or raise rtol and atol",
    ):
        solve("adaptive_sde", PROCESSES["vp"], max_nfe=20)


@pytest.mark.parametrize("options", [{"rtol": -1.0}, {"atol": 0.0}, {"first_step": 0.0}, {"max_nfe": 0}], ids=str)
def test_wrong_settings_are_explained(options):
    with pytest.raises(ValueError, match=r"rtol is .*, atol .*, first_step .* and max_nfe .*; they must be above 0"):
        get_sampler("adaptive_sde", **options)
