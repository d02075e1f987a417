"""A score together with its divergence, sum_i d s_i / d x_i, from one evaluation of the network.

Exact: one vector-Jacobian product for each dimension. Hutchinson (arXiv 1810.01367): E[v^T (ds/dx) v] over probes v of
zero mean and unit covariance; Rademacher probes (+-1) have the smaller variance, Gaussian ones are the alternative.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sde_lib.registry import lookup
from sde_lib.sde import ScoreFn


def _rademacher(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    signs = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return signs.to(like.dtype) * 2 - 1


def _gaussian(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


PROBE_NOISES: dict[str, Callable[[tuple[int, ...], Tensor, torch.Generator | None], Tensor]] = {
    "rademacher": _rademacher,
    "gaussian": _gaussian,
}


class Divergence(Protocol):
    """(score_fn, x: (B, *), t: (B,)) -> score (B, *) and its divergence (B, K), one column for each estimate."""

    def __call__(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate once."""
        ...


class HutchinsonDivergence:
    """K independent estimates v_k^T (ds/dx) v_k with fixed probes, so that an ODE solver sees a smooth function.

    Args:
        probes: (K, B, *).
    """

    def __init__(self, probes: Tensor) -> None:
        self.probes = probes

    def __call__(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Score (B, *) and the K estimates (B, K)."""
        x, score = _tracked(score_fn, x, t)
        estimates = [_quadratic_forms(score, x, some) for some in self.probes.split(_block(x))]
        return score.detach(), torch.cat(estimates).T


class ExactDivergence:
    """The trace of the Jacobian: v_k^T (ds/dx) v_k summed over the unit vectors v_k."""

    def __call__(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Score (B, *) and the exact divergence (B, 1)."""
        x, score = _tracked(score_fn, x, t)
        dims = x[0].numel()
        trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for rows in torch.arange(dims, device=x.device).split(_block(x)):
            basis = torch.nn.functional.one_hot(rows, dims).to(x.dtype).reshape(len(rows), 1, *x.shape[1:])
            trace = trace + _quadratic_forms(score, x, basis.expand(-1, len(x), *x.shape[1:])).sum(0)
        return score.detach(), trace[:, None]


BLOCK = 2**14
"""Elements of the products that run at once: enough to keep small problems busy, and a bound on the memory of large."""


def _block(x: Tensor) -> int:
    """Number of products that run at once."""
    return max(1, BLOCK // x.numel())


def _quadratic_forms(score: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """v_k^T (ds/dx) v_k of each sample for vectors (K, B, *), shape (K, B)."""
    if len(vectors) == 1:  # without the detour over vmap, which costs a tenth on large networks
        products = torch.autograd.grad(score, x, vectors[0], retain_graph=True)[0][None]
    else:
        (products,) = torch.autograd.grad(score, x, vectors, retain_graph=True, is_grads_batched=True)
    return (products * vectors).reshape(*vectors.shape[:2], -1).sum(2)


def _tracked(score_fn: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        score = score_fn(x, t)
    if not score.requires_grad:
        raise ValueError(
            "the score does not depend on x differentiably (computed under no_grad?); its divergence needs that"
        )
    return x, score


def draw_probes(like: Tensor, probes: int, noise: str, generator: torch.Generator | None) -> Tensor:
    """Draw (K, B, *) probes for x of shape (B, *)."""
    return lookup(PROBE_NOISES, noise, "probe noise")((probes, *like.shape), like, generator)
