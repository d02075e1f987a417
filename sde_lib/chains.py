"""The noise of the discrete chains on which published networks were trained."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde_lib.arguments import is_whole
from sde_lib.registry import lookup


def linear(steps: int, first: float, last: float) -> Tensor:
    """From first to last in equal steps (arXiv 2006.11239)."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def scaled_linear(steps: int, first: float, last: float) -> Tensor:
    """Squares of equal steps from sqrt(first) to sqrt(last) (arXiv 2112.10752)."""
    return torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float64).square()


def sigmoid(steps: int, first: float, last: float) -> Tensor:
    """From first to last along a sigmoid on [-6, 6]."""
    return first + (last - first) * torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()


def cosine(steps: int, first: float, last: float) -> Tensor:
    """1 - a(i + 1) / a(i) with a(i) = cos^2(pi/2 (i / steps + s) / (1 + s)), s = 0.008, at most 0.999 (2102.09672)."""
    edges = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    kept = torch.cos((edges + 0.008) / 1.008 * torch.pi / 2).square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)


CHAINS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "sigmoid": sigmoid,
    "cosine": cosine,
}
"""Name -> (steps, first, last) -> betas, float64 (steps,); first and last are beta_0 and the last beta."""


def chain_alphas_cumprod(
    name: str = "linear", steps: int = 1000, first: float | None = None, last: float | None = None
) -> Tensor:
    """a_i of x_i = sqrt(a_i) x_0 + sqrt(1 - a_i) eps, falling, float64 (steps,).

    Args:
        name: a key of ``CHAINS``.
        steps: length of the chain, at least 2.
        first: beta_0; None for 0.1 / steps, DDPM's where there are 1000.
        last: the last beta; None for 20 / steps.

    Raises:
        ValueError: an unknown name, or numbers that make no chain.
    """
    betas_of = lookup(CHAINS, name, "chain")
    if not is_whole(steps) or steps < 2:
        raise ValueError(f"a chain of {steps!r} steps; it needs a whole number, at least 2")
    first = 0.1 / steps if first is None else first
    last = 20 / steps if last is None else last
    if not 0 < first <= last < 1:
        raise ValueError(f"betas from {first!r} to {last!r}; a chain needs 0 < first <= last < 1")
    return (1 - betas_of(steps, first, last)).cumprod(0)
