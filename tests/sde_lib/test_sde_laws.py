"""What a process does to data: perturbing, the three equations with the same p_t, the prior; and a user's own."""

import re

import pytest
import torch
from oracles import PROCESSES, LinearPath, assert_law, gaussian, gaussian_flow, generator, mixture
from processes import every_process

from sde_lib import SDE, GaussianMixture, integrate

# Perturbing, drift, reverse.


@every_process
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 4, 4), (5, 1, 2, 3, 2)])
def test_perturb_and_marginal_prob(sde, shape):
    x0, eps = torch.randn(shape), torch.randn(shape)
    t = torch.rand(5)
    alpha, sigma = sde.marginal(t)
    mean, std = sde.marginal_prob(x0, t)
    x = sde.perturb(x0, t, eps)
    drift, diffusion = sde.sde(x0, t)
    assert std.shape == diffusion.shape == (5,)
    assert x.dtype == torch.float32
    for i in range(5):
        assert torch.equal(mean[i], alpha[i] * x0[i])
        assert torch.equal(x[i], alpha[i] * x0[i] + sigma[i] * eps[i])
        assert torch.equal(drift[i], sde.drift_coeff(t)[i] * x0[i])
    assert torch.equal(std, sigma)
    assert torch.equal(diffusion, sde.diffusion(t))


@every_process
@pytest.mark.parametrize("time", [0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.tensor(0.3, dtype=torch.float64)])
def test_one_time_serves_the_whole_batch(sde, time):
    x, eps = torch.randn(2, 4, 3, 2, 2)
    each = torch.full((4,), 0.3)
    assert torch.equal(sde.perturb(x, time, eps), sde.perturb(x, each, eps))
    for ours, theirs in zip(sde.sde(x, time), sde.sde(x, each), strict=True):
        assert torch.equal(ours, theirs)


@every_process
def test_a_number_is_a_time_in_x_s_own_precision(sde):
    x, eps = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.equal(sde.perturb(x, 0.3, eps), sde.perturb(x, torch.tensor(0.3, dtype=torch.float64), eps))
    assert not torch.equal(sde.perturb(x, 0.3, eps), sde.perturb(x, torch.tensor(0.3), eps))


@every_process
def test_times_of_another_shape_are_refused(sde):
    x = torch.zeros(4, 2)
    for bad in (torch.zeros(3), torch.zeros(4, 1), torch.zeros(4, 2)):
        message = re.escape(f"time has shape {tuple(bad.shape)}; give () or (B,) with B = 4, the batch of x")
        with pytest.raises(ValueError, match=message):
            sde.perturb(x, bad, x)
        with pytest.raises(ValueError, match=message):
            sde.reverse(lambda x, t: x).sde(x, bad)


@every_process
@pytest.mark.parametrize("time", [0.02, 0.3, 0.9])
def test_all_three_equations_have_the_same_p_t(sde, time):
    """Fokker-Planck for the forward SDE, the reverse SDE and the ODE, with every term by autograd from log p_t.

    With s = grad log p:   d/dt log p + div b + b.s = +- g^2 / 2 (div s + |s|^2),   + forwards, - in reverse, 0 for the
    ODE, where b is the drift and g the diffusion that the object reports.
    """
    law = mixture((3, 1))
    x = law.marginal(sde, time).sample(6, generator=generator(2), dtype=torch.float64).requires_grad_()
    t = torch.full((6,), time, dtype=torch.float64, requires_grad=True)
    log_p = law.log_prob(x, sde, t)
    score, rate = torch.autograd.grad(log_p.sum(), (x, t), create_graph=True)

    def divergence(field):
        flat = field.flatten(1)
        rows = (torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0].flatten(1)[:, i] for i in range(3))
        return sum(rows)

    spread = divergence(score) + score.square().flatten(1).sum(1)
    score_fn = law.score_fn(sde)
    for equation, sign in (
        (sde, 1.0),
        (sde.reverse(score_fn), -1.0),
        (sde.reverse(score_fn, probability_flow=True), 0.0),
    ):
        drift, diffusion = equation.sde(x, t)
        left = rate + divergence(drift) + (drift * score).flatten(1).sum(1)
        assert torch.allclose(left, 0.5 * sign * sde.diffusion(t) ** 2 * spread, rtol=1e-9, atol=1e-7)
        assert torch.equal(diffusion, sde.diffusion(t) if sign else torch.zeros_like(t))


# The prior.


@every_process
def test_prior_is_what_p_T_becomes(sde):
    """N(0, prior_std^2): the kernel's own standard deviation at T, to the little signal that is left."""
    alpha, sigma = sde.marginal(torch.tensor(sde.T, dtype=torch.float64))
    assert sde.prior_std == pytest.approx(float(sigma), abs=1.01 * float(alpha**2) if alpha < 1 else 0)


@pytest.mark.parametrize("name", PROCESSES)
def test_prior_samples_have_the_prior_s_law(name):
    sde = PROCESSES[name]
    z = sde.prior_sample((4000, 3, 2), generator=generator(4), dtype=torch.float64)
    assert_law(z, GaussianMixture([1.0], torch.zeros(1, 3, 2), std=sde.prior_std))


@every_process
def test_prior_samples_come_from_the_generator_alone(sde):
    state = torch.get_rng_state()
    z = sde.prior_sample((2, 3), generator=generator(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(z, sde.prior_sample([2, 3], generator=generator(5), device="cpu"))
    assert not torch.equal(z, sde.prior_sample((2, 3), generator=generator(6)))
    assert z.dtype == torch.float32
    assert sde.prior_sample((1,), dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("name", PROCESSES)
def test_kernel_samples_have_the_marginal_law(name):
    """perturb(x0 ~ data, t, eps) ~ p_t, and the step s -> t of ``transition`` carries p_s to p_t."""
    sde, law, draw = PROCESSES[name], mixture((2, 2)), generator(7)
    n = 6000
    x0 = law.sample(n, generator=draw, dtype=torch.float64)
    s, t = (torch.full((n,), v, dtype=torch.float64) for v in (0.1, 0.35))

    def noise():
        return torch.randn(x0.shape, generator=draw, dtype=torch.float64)

    x_s = sde.perturb(x0, s, noise())
    assert_law(x_s, law.marginal(sde, 0.1))
    ratio, std = sde.transition(s, t)
    assert_law(ratio[:, None, None] * x_s + std[:, None, None] * noise(), law.marginal(sde, 0.35))


# A user's own process.


def test_four_formulas_make_a_process():
    """Nothing else is written by the user: the flow, the prior and the inverse follow."""
    sde = LinearPath()
    assert isinstance(sde, SDE)
    assert sde.prior_std == pytest.approx(1.02, rel=1e-12)
    assert repr(sde) == "LinearPath()"
    law, mean, variance = gaussian((3,))
    x = law.sample(4, generator=generator(8), dtype=torch.float64)
    flow = sde.reverse(law.score_fn(sde), probability_flow=True)
    solved = integrate(lambda t, x: flow.sde(x, t)[0], x, 0.9, 0.1, rtol=1e-10, atol=1e-10).x
    assert torch.allclose(solved, gaussian_flow(sde, x, 0.9, 0.1, mean, variance), rtol=0, atol=1e-9)


@pytest.mark.parametrize("missing", ["log_alpha", "sigma", "drift_coeff", "diffusion"])
def test_all_four_formulas_are_needed(missing):
    formulas = {name: getattr(LinearPath, name) for name in ("log_alpha", "sigma", "drift_coeff", "diffusion")}
    del formulas[missing]
    with pytest.raises(TypeError, match=missing):
        type("Partial", (SDE,), formulas)()
