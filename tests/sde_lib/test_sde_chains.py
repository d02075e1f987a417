"""Chains of the literature: those of diffusers' scheduler, and closed forms."""

import pytest
import torch
from diffusers import DDPMScheduler

from sde_lib import CHAINS, VPSDE, chain_alphas_cumprod, ddpm_schedule

THEIRS = {"cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("steps", [10, 1000, 4000])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_that_of_diffusers(name, steps):
    first, last = 0.1 / steps, min(20 / steps, 0.9)
    theirs = DDPMScheduler(steps, beta_start=first, beta_end=last, beta_schedule=THEIRS.get(name, name))
    found = chain_alphas_cumprod(name, steps, first, last)
    assert found.dtype == torch.float64
    assert (found.diff() < 0).all()
    torch.testing.assert_close(found.float(), theirs.alphas_cumprod, rtol=2e-3, atol=1e-7)  # theirs is in float32


def test_the_linear_chain_is_that_of_the_process():
    torch.testing.assert_close(chain_alphas_cumprod(), ddpm_schedule(VPSDE(), 1000).alphas_cumprod)
    torch.testing.assert_close(chain_alphas_cumprod(steps=500), ddpm_schedule(VPSDE(), 500).alphas_cumprod)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "exp"}, "unknown chain 'exp'"),
        ({"steps": 1}, "a chain of 1 steps; it needs a whole number, at least 2"),
        ({"steps": 10.5}, "a chain of 10.5 steps"),
        ({"steps": 10}, "betas from 0.01 to 2.0; a chain needs 0 < first <= last < 1"),
        ({"first": 0.0}, "betas from 0.0 to 0.02"),
        ({"first": 0.02, "last": 0.01}, "betas from 0.02 to 0.01"),
    ],
    ids=str,
)
def test_what_makes_no_chain(options, message):
    with pytest.raises(ValueError, match=message):
        chain_alphas_cumprod(**options)
