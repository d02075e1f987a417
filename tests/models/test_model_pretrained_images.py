"""Networks of diffusers in our samplers: the images are those of diffusers' own schedulers from the same noise."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers_folders import VARIANTS, save, theirs

from models import pretrained
from samplers import get_sampler

# diffusers 0.42 beside numpy 2.4 and torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CHAINS = {
    "epsilon": {"prediction_type": "epsilon"},
    "v": {"prediction_type": "v_prediction"},
    "sample": {"prediction_type": "sample"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "latent diffusion's": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}


@pytest.fixture
def start():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def pair(tmp_path, **chain):
    """(their network, ours), with one set of weights."""
    unet = theirs(**VARIANTS["attention"])
    folder = save(tmp_path / "model", unet, scheduler=DDPMScheduler(**chain))
    return unet, pretrained.load(folder).requires_grad_(False)


def by_theirs(scheduler, unet, x, steps):
    """Their images, and the steps of the chain that they went through."""
    scheduler.set_timesteps(**steps)
    with torch.no_grad():
        for step in scheduler.timesteps:
            x = scheduler.step(unet(x, step).sample, step, x).prev_sample
    return x, scheduler.timesteps


def times_of(model, scheduler, steps):
    """The times at which our process has the noise of these steps."""
    kept = scheduler.alphas_cumprod.double()[steps]
    return model.sde.time_from_log_snr((kept / (1 - kept)).log()).tolist()


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_ddim(tmp_path, start, chain):
    unet, model = pair(tmp_path, **chain)
    scheduler = DDIMScheduler(**chain, clip_sample=False, timestep_spacing="leading")
    # 900, 800, ..., 0: the last step of the chain has more noise than the process at T
    expected, steps = by_theirs(scheduler, unet, start, {"num_inference_steps": 10})
    times = times_of(model, scheduler, steps)
    found = get_sampler("ddim", grid=times).sample(model.sde, model, start.shape, x_init=start)
    assert found.nfe == 10
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_dpmpp(tmp_path, start, chain):
    """Order 2, whose "heun" is the exact integral of the line through two predictions."""
    unet, model = pair(tmp_path, **chain)
    scheduler = DPMSolverMultistepScheduler(
        **chain, solver_order=2, solver_type="heun", timestep_spacing="leading", final_sigmas_type="zero"
    )
    expected, steps = by_theirs(scheduler, unet, start, {"num_inference_steps": 12})
    times = times_of(model, scheduler, steps)
    found = get_sampler("dpmpp", order=2, grid=times).sample(model.sde, model, start.shape, x_init=start)
    assert found.nfe == 12
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-3)


def test_ode(tmp_path, start):
    """Their chain in 226 small steps goes the way of the ODE; random weights draw images that reach up to 234."""
    chain = CHAINS["epsilon"]
    unet, model = pair(tmp_path, **chain)
    scheduler = DPMSolverMultistepScheduler(
        **chain, solver_order=2, solver_type="heun", timestep_spacing="leading", final_sigmas_type="zero"
    )
    expected, steps = by_theirs(scheduler, unet, start, {"timesteps": list(range(900, -1, -4))})
    times = times_of(model, scheduler, steps)
    sampler = get_sampler("ode", grid=[times[0], times[-1]], rtol=1e-6, atol=1e-6)
    found = sampler.sample(model.sde, model, start.shape, x_init=start)
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.x / largest, expected / largest, rtol=0, atol=1e-3)
