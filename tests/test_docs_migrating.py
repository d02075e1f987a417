"""docs/migrating.md: what it names exists, and schedulers that it calls equal are: from the same start and noise."""

import re

import diffusers
import oracles
import pytest
import torch
from snippets import DOCS

from modes.edit_settings import INVERSE_METHODS
from samplers import PREDICTORS, SAMPLERS, get_sampler
from sde_lib import VPSDE

PAGE = (DOCS / "migrating.md").read_text()
ROWS = re.findall(r"^\| (`\w+Scheduler`.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
EQUAL = {
    "DDPMScheduler": ("ancestral", {}),
    "DDIMScheduler": ("ddim", {}),
    "EulerDiscreteScheduler": ("euler", {}),
    "HeunDiscreteScheduler": ("heun", {}),
    "EulerAncestralDiscreteScheduler": ("ddim", {"eta": 1.0}),
}
"""Scheduler -> our sampler with its options."""
DRAWS = ("DDPMScheduler", "EulerAncestralDiscreteScheduler")
STEPS = 20


def test_every_scheduler_and_every_sampler_of_the_table_exists():
    for schedulers, sampler, _ in ROWS:
        assert all(hasattr(diffusers, name) for name in re.findall(r"`(\w+)`", schedulers))
        ours = sampler.split("`")[1]
        assert ours in SAMPLERS or ours == "--mode=edit"
    assert "replacement" in INVERSE_METHODS
    named = re.search(r"`sampling.predictor`: (.*?);", PAGE)[1].split(", ")
    assert set(named) <= set(PREDICTORS)


def test_the_table_tells_which_are_equal():
    equal = {schedulers.strip("`"): sampler for schedulers, sampler, note in ROWS if note == "yes"}
    assert set(equal) == set(EQUAL)
    assert all(sampler.startswith(f"`{EQUAL[name][0]}`") for name, sampler in equal.items())


def scheduler_of(name, sde):
    """A scheduler on the chain of 1000 steps that has the process's own noise levels at t = 1/1000, 2/1000, ..., 1."""
    log_alpha = sde.log_alpha(torch.arange(1001, dtype=torch.float64) / 1000)
    clip = {"clip_sample": False} if name.startswith(("DDPM", "DDIM")) else {}
    return getattr(diffusers, name)(trained_betas=-torch.expm1(2 * log_alpha.diff()).numpy(), **clip)


def images_of_diffusers(name, sde, score_fn, x):
    """Its images from x at the first noise level, and the times of ours at which it asked for the noise."""
    scheduler, generator = scheduler_of(name, sde), oracles.generator(1)
    scheduler.set_timesteps(STEPS)
    times = []
    for t in scheduler.timesteps:
        inside = scheduler.scale_model_input(x, t)
        if hasattr(scheduler, "step_index"):  # its states are x / alpha
            if not times:
                x = x * (1 + scheduler.sigmas[0] ** 2) ** 0.5
                inside = scheduler.scale_model_input(x, t)
            level = scheduler.sigmas[scheduler.step_index].double()
        else:
            signal = scheduler.alphas_cumprod[int(t)].double()
            level = ((1 - signal) / signal).sqrt()
        time = sde.time_from_log_snr(-2 * level.log()).clamp(max=1)  # float32 of theirs may exceed it
        eps = -sde.sigma(time).float() * score_fn(inside, time.float().expand(len(x)))
        x = scheduler.step(eps, t, x, **{"generator": generator} if name in DRAWS else {}).prev_sample
        times.append(float(time))
    return x, times


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers: numpy 2 wants a copy keyword
@pytest.mark.parametrize("name", EQUAL)
def test_a_scheduler_and_its_sampler_draw_the_same_images(name):
    sde, law = VPSDE(), oracles.mixture_2d()
    score_fn = law.score_fn(sde)
    x = torch.randn(50, 2, generator=oracles.generator(0))
    theirs, times = images_of_diffusers(name, sde, score_fn, x)
    sampler, options = EQUAL[name]
    grid = list(dict.fromkeys(times))  # Heun's asks twice at the same
    ours = get_sampler(sampler, grid=grid, **options).sample(
        sde, score_fn, x.shape, x_init=x, generator=oracles.generator(1)
    )
    assert ours.nfe == len(times)
    torch.testing.assert_close(ours.x, theirs, rtol=0, atol=1e-5)
