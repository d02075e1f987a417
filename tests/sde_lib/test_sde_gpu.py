"""Likelihoods and bounds are the same on a GPU."""

import pytest
import torch
from oracles import PROCESSES, generator, mixture

from sde_lib import SDES, VPSDE, CosineVPSDE, ddpm_bound, elbo, log_likelihood, transport

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
SHAPE = (3, 4, 4)


def data(count=6):
    return mixture(SHAPE).sample(count, generator=generator(1), dtype=torch.float64)


def score_fn(x, t):
    """Smooth, with a divergence of its own at every x."""
    return -torch.sin(x) / (1 + t).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_the_likelihood_is_the_same(name, divergence):
    x, probes = data(), torch.randn(3, 6, *SHAPE, generator=generator(2), dtype=torch.float64)
    own = {"divergence": divergence} | ({"probes": probes} if divergence == "hutchinson" else {})
    here, there = (log_likelihood(PROCESSES[name], score_fn, x.to(device), **own) for device in ("cpu", "cuda"))
    assert there.log_prob.device.type == there.z.device.type == "cuda"
    torch.testing.assert_close(there.log_prob.cpu(), here.log_prob, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(there.z.cpu(), here.z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_way_there_and_back_is_the_same(name):
    sde, x = PROCESSES[name], data()
    codes = [transport(sde, score_fn, x.to(device), sde.t_min, sde.T).x.cpu() for device in ("cpu", "cuda")]
    torch.testing.assert_close(*codes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SDES)
def test_the_bounds_are_the_same(name):
    sde, x = SDES[name](), data()
    u = torch.rand(6, generator=generator(3), dtype=torch.float64)
    eps = torch.randn(5, 6, *SHAPE, generator=generator(4), dtype=torch.float64)
    bounds = [elbo] + ([ddpm_bound] if isinstance(sde, VPSDE | CosineVPSDE) else [])
    for bound in bounds:
        steps = {"steps": 1000} if bound is ddpm_bound else {}
        values = [
            bound(sde, score_fn, x.to(device), samples=4, u=u.to(device), eps=eps.to(device), **steps).log_prob.cpu()
            for device in ("cpu", "cuda")
        ]
        torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)
