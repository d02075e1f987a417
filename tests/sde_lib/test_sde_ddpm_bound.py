"""DDPM's bound on its chain: its own formulas, and the draws of transitions."""

import pytest
import torch
from oracles import generator, mixture

from sde_lib import VPSDE, CosineVPSDE, GaussianMixture, ddpm_bound, ddpm_schedule
from sde_lib.sde import match_dims

CHAINS = {"vp": (VPSDE(), 30), "vp-long": (VPSDE(0.2, 4.0), 7), "cosine": (CosineVPSDE(beta_max=20.0), 25)}
every_chain = pytest.mark.parametrize("chain", CHAINS)


def noise_of(law, sde):
    """The exact predicted noise -sigma s."""
    return lambda x, t: -match_dims(sde.sigma(t), x) * law.score(x, sde, t)


def ddpm_terms(sde, eps_fn, x0, steps, eps):
    """-log p bound of arXiv 2006.11239, equation 5, from betas alone: (prior, sum of KLs, reconstruction), (B,)."""
    betas = ddpm_schedule(sde, steps).betas
    times = ddpm_schedule(sde, steps).times
    alphas = 1 - betas
    product = torch.cumprod(alphas, 0)

    def state(i, noise):
        return product[i].sqrt() * x0 + (1 - product[i]).sqrt() * noise

    def predicted(i, x):
        return eps_fn(x, times[i].expand(len(x0)))

    last = torch.distributions.Normal(product[-1].sqrt() * x0, (1 - product[-1]).sqrt())
    prior = torch.distributions.kl_divergence(last, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    middle = torch.zeros(len(x0), dtype=torch.float64)
    for i in range(1, steps):
        x = state(i, eps[i - 1])
        variance = (1 - product[i - 1]) / (1 - product[i]) * betas[i]

        def posterior_mean(start, x=x, i=i):  # equation 7
            old, now = product[i - 1], product[i]
            return (old.sqrt() * betas[i] * start + alphas[i].sqrt() * (1 - old) * x) / (1 - now)

        # equation 11: the mean that the network parametrises
        model = (x - betas[i] / (1 - product[i]).sqrt() * predicted(i, x)) / alphas[i].sqrt()
        q = torch.distributions.Normal(posterior_mean(x0), variance.sqrt())
        p = torch.distributions.Normal(model, variance.sqrt())
        middle = middle + torch.distributions.kl_divergence(q, p).flatten(1).sum(1)
    x = state(0, eps[-1])
    mean = (x - betas[0] / (1 - product[0]).sqrt() * predicted(0, x)) / alphas[0].sqrt()
    # of variance beta_1 / (1 - beta_1), that of x0 itself given x_1
    first = torch.distributions.Normal(mean, (betas[0] / alphas[0]).sqrt())
    return prior, middle, -first.log_prob(x0).flatten(1).sum(1)


@every_chain
def test_ddpm_s_own_formulas(chain):
    sde, steps = CHAINS[chain]
    law = mixture((3, 2, 2))
    x0 = law.sample(3, generator=generator(1), dtype=torch.float64)
    eps = torch.randn(steps, *x0.shape, generator=generator(2), dtype=torch.float64)
    result = ddpm_bound(sde, noise_of(law, sde), x0, steps=steps, eps=eps)
    terms = ddpm_terms(sde, noise_of(law, sde), x0, steps, eps)
    for found, exact in zip(result[1:4], terms, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(result.log_prob, -sum(terms), rtol=1e-7, atol=0)
    assert result.nfe == steps


@every_chain
def test_drawn_transitions_are_unbiased_for_the_sum(chain):
    """A mean over a fine grid of offsets; each transition's share of them is wrong by one point at most.

    Four transitions are those of four single draws, at offsets a quarter apart.
    """
    sde, steps = CHAINS[chain]
    law, n = GaussianMixture([0.35, 0.65], torch.tensor([[0.5], [-0.3]]), std=torch.tensor([0.45, 0.6])), 40_000
    x0, noise = torch.full((n, 1), 0.4, dtype=torch.float64), torch.full((n, 1), -0.8, dtype=torch.float64)
    u, eps_fn = (torch.arange(n, dtype=torch.float64) + 0.5) / n, noise_of(law, sde)

    def drawn(samples):
        eps = noise.expand(samples + 1, n, 1)
        return ddpm_bound(sde, eps_fn, x0, steps=steps, samples=samples, u=u, eps=eps).diffusion

    full = ddpm_bound(sde, eps_fn, x0[:1], steps=steps, eps=noise[:1].expand(steps, 1, 1)).diffusion
    one = drawn(1)
    assert float(one.mean()) == pytest.approx(float(full), rel=steps / n)
    assert one.std() > 0.01 * full
    apart = torch.stack([one.roll(-m * n // 4) for m in range(4)]).mean(0)
    torch.testing.assert_close(drawn(4), apart, rtol=1e-9, atol=0)


@every_chain
def test_drawn_transitions_have_no_variance_where_errors_are_equal(chain):
    """They are drawn in proportion to their weights: an error of 0.09 everywhere gives the sum whatever is drawn."""
    sde, steps = CHAINS[chain]
    x0 = torch.zeros(50, 1, dtype=torch.float64)
    eps_fn = lambda x, t: torch.full_like(x, 0.3)  # noqa: E731
    drawn = ddpm_bound(sde, eps_fn, x0, steps=steps, samples=2, u=torch.rand(50), eps=torch.zeros(3, 50, 1).double())
    product = ddpm_schedule(sde, steps).alphas_cumprod
    snr = product / (1 - product)
    total = 0.5 * 0.09 * (snr[:-1] / snr[1:] - 1).sum()
    torch.testing.assert_close(drawn.diffusion, total.expand(50), rtol=1e-7, atol=0)
    assert drawn.nfe == 3
