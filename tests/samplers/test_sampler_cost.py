"""A sampler adds little to its network: no tensors that pile up with the steps, and no waiting for the device."""

import gc

import oracles
import pytest
import torch

from samplers import SAMPLERS, PathNoise, get_sampler
from sde_lib import VPSDE, match_dims

SDE = VPSDE()
LAW = oracles.mixture_2d()
OWN_STEPS = {"ode", "adaptive_sde"}  # they must look at errors to choose a step


@pytest.fixture(scope="module", autouse=True)
def _only_what_is_new():
    """Objects from before are neither collected nor counted, which would take seconds each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def live_tensors():
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())  # isinstance wakes proxies


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in OWN_STEPS])
def test_no_tensor_is_kept_from_step_to_step(name):
    found = []
    for steps in (40, 160):
        counts = []

        def count(progress, counts=counts, steps=steps):
            if progress.step in (steps - 2, steps - 1):
                gc.collect()
                counts.append(live_tensors())

        run = get_sampler(name, steps=steps)
        run.sample(SDE, LAW.score_fn(SDE), (3, 2), noise=PathNoise([1, 2, 3]), callback=count)
        found.append(counts)
    # The Brownian path holds a pending interval for each level of its tree, whose number wavers by the place.
    assert max(found[1]) <= max(found[0]) + 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("noise", ["generator", "path"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in OWN_STEPS])
def test_no_step_waits_for_the_device(name, noise):
    """From the end of the first step to the end of the last one any synchronisation raises."""

    def watch(progress):
        torch.cuda.set_sync_debug_mode("error" if progress.step < progress.steps - 1 else "default")

    source = PathNoise(range(8)) if noise == "path" else None
    try:
        run = get_sampler(name, steps=6)
        run.sample(SDE, lambda x, t: -x, (8, 3, 4, 4), noise=source, device="cuda", callback=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_the_same_on_the_gpu(name):
    """For standard normal data, so that rounding does not grow, and adaptive methods take the same steps."""

    def score_fn(x, t):
        alpha, sigma = SDE.marginal(t)
        return -x / match_dims(alpha**2 + sigma**2, x)

    ends = [
        get_sampler(name, steps=20).sample(SDE, score_fn, (4, 3, 4), noise=PathNoise(range(4)), device=device).x.cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-3)
