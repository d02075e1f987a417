"""Divergence of a score: exact traces and quadratic forms, the law of the probes, and blocks of products."""

import math

import pytest
import torch
from oracles import generator, mixture
from scipy import stats

from sde_lib import VPSDE, divergence
from sde_lib.divergence import PROBE_NOISES, ExactDivergence, HutchinsonDivergence, draw_probes


class LinearScore:
    """s = -x A^T + b with a full, asymmetric A: its divergence is -trace A wherever x is."""

    def __init__(self, d, seed=0):
        self.matrix = torch.randn(d, d, generator=generator(seed), dtype=torch.float64)

    def __call__(self, x, t):
        return (-x.flatten(1) @ self.matrix.T + 1).reshape(x.shape)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 4, 4), (63,), (64,), (65,), (3, 8, 8)])
def test_exact_divergence_is_the_trace(shape):
    d = math.prod(shape)
    score = LinearScore(d)
    x = torch.randn(3, *shape, dtype=torch.float64)
    value, traces = ExactDivergence()(lambda x, t: torch.tanh(score(x, t)), x, torch.zeros(3))
    assert torch.equal(value, torch.tanh(score(x, None)))
    slopes = 1 - torch.tanh(score(x, None)).flatten(1) ** 2
    assert traces.shape == (3, 1)
    assert torch.allclose(traces[:, 0], -(slopes * score.matrix.diagonal()).sum(1), rtol=1e-10)


@pytest.mark.parametrize("block", [1, 12, 24, 5 * 48, 100 * 48])
@pytest.mark.parametrize("kind", ["exact", "hutchinson"])
def test_blocks_do_not_matter(block, kind, monkeypatch):
    """Elements at once: of the 48 of x, one product at a time up to all of them, and numbers that do not divide."""
    law, sde = mixture((3, 2, 2)), VPSDE()
    x = law.marginal(sde, 0.2).sample(4, generator=generator(1), dtype=torch.float64)
    t = torch.full((4,), 0.2, dtype=torch.float64)
    many = draw_probes(x, 17, "gaussian", generator(2))
    estimate = ExactDivergence() if kind == "exact" else HutchinsonDivergence(many)
    sizes, forms = [], divergence._quadratic_forms

    def counted(score, x, vectors):
        sizes.append(len(vectors))
        return forms(score, x, vectors)

    monkeypatch.setattr(divergence, "_quadratic_forms", counted)
    monkeypatch.setattr(divergence, "BLOCK", 10**9)
    _, whole = estimate(law.score_fn(sde), x, t)
    n = 12 if kind == "exact" else 17
    assert sizes == [n]
    sizes.clear()
    monkeypatch.setattr(divergence, "BLOCK", block)
    _, parts = estimate(law.score_fn(sde), x, t)
    at_once = max(1, block // 48)
    assert sum(sizes) == n
    assert max(sizes) == min(at_once, n)
    assert len(sizes) == math.ceil(n / at_once)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2,), (3, 8, 8)])
def test_quadratic_forms_of_a_mixture(shape):
    """The Jacobian of the score, written out: sum_k r_k (s_k s_k^T - C_k^-1) - s s^T."""
    law, sde = mixture(shape), VPSDE()
    x = law.marginal(sde, 0.3).sample(2, generator=generator(1), dtype=torch.float64)
    t = torch.full((2,), 0.3, dtype=torch.float64)
    marginal = law.marginal(sde, 0.3)
    inverses = torch.linalg.inv(marginal.covariances)
    each = -torch.einsum("kij,bkj->bki", inverses, x.flatten(1)[:, None] - marginal.means)
    shares = marginal.responsibilities(x)
    score = torch.einsum("bk,bki->bi", shares, each)
    outer = torch.einsum("bk,bki,bkj->bij", shares, each, each) - torch.einsum("bi,bj->bij", score, score)
    jacobian = outer - torch.einsum("bk,kij->bij", shares, inverses)
    value, exact = ExactDivergence()(law.score_fn(sde), x, t)
    torch.testing.assert_close(value.flatten(1), score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact[:, 0], jacobian.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-9, atol=1e-9)
    probes = draw_probes(x, 3, "gaussian", generator(2))
    _, found = HutchinsonDivergence(probes)(law.score_fn(sde), x, t)
    v = probes.flatten(2)
    torch.testing.assert_close(found, torch.einsum("kbi,bij,kbj->bk", v, jacobian, v), rtol=1e-9, atol=1e-9)


# Var of v^T A v, with S = (A + A^T) / 2: arXiv 1810.01367 and Avron and Toledo 2011.
VARIANCES = {
    "rademacher": lambda s: 2 * ((s**2).sum() - (s.diagonal() ** 2).sum()),
    "gaussian": lambda s: 2 * (s**2).sum(),
}


@pytest.mark.parametrize("noise", PROBE_NOISES)
def test_hutchinson_has_its_mean_and_variance(noise):
    score, k = LinearScore(6), 20_000
    x = torch.zeros(k, 6, dtype=torch.float64)  # one estimate for each row
    probes = draw_probes(x, 2, noise, generator(3))
    assert probes.shape == (2, k, 6)
    value, estimates = HutchinsonDivergence(probes)(score, x, torch.zeros(k))
    assert torch.equal(value, score(x, None))
    assert estimates.shape == (k, 2)
    estimates = estimates.flatten()
    symmetric = (score.matrix + score.matrix.T) / 2
    variance = VARIANCES[noise](symmetric)
    n = len(estimates)
    assert abs(estimates.mean() + score.matrix.trace()) < 4 * (variance / n).sqrt()
    fourth = ((estimates - estimates.mean()) ** 4).mean()
    assert abs(estimates.var() - variance) < 4 * ((fourth - variance**2) / n).sqrt()


@pytest.mark.parametrize("noise", PROBE_NOISES)
def test_probes_have_zero_mean_and_unit_covariance(noise):
    x = torch.zeros(1, 3, dtype=torch.float32)
    probes = draw_probes(x, 40_000, noise, generator(4))[:, 0]
    assert probes.dtype == torch.float32
    assert probes.mean(0).abs().max() < 4 / math.sqrt(40_000)
    assert (probes.T @ probes / 40_000 - torch.eye(3)).abs().max() < 4 * math.sqrt(2 / 40_000)
    if noise == "rademacher":
        assert set(probes.unique().tolist()) == {-1.0, 1.0}
    else:
        assert stats.kstest(probes.flatten().numpy(), "norm").pvalue > 1e-3
