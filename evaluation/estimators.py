"""Three independent estimates of the log-probability of a batch: the ODE's density, the SDE's bound, DDPM's bound.

All give log P of the levels (log density of continuous data) in nats, and see the model as functions (x, t, labels).
Their random numbers are those of each image (``Draws``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data import Batch, Dequantizer, Draws, Quantizer
from sde_lib import SDE, ddpm_bound, elbo, log_likelihood
from sde_lib.divergence import draw_probes

ModelFn = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x: (B, *), t: (B,), labels (B,) or None) -> score, or predicted noise, (B, *)."""


class Estimate(NamedTuple):
    """Estimates of a batch.

    Attributes:
        log_prob: (B,) nats, float64.
        variance: (B,) of the estimate over its probes; None where they do not tell.
        nfe: evaluations of the network for each image.
        z: latent codes (B, *), or None.
    """

    log_prob: Tensor
    variance: Tensor | None
    nfe: int
    z: Tensor | None = None


Estimator = Callable[[Batch, Draws], Estimate]
"""(raw batch, draws) -> Estimate."""


@dataclass(frozen=True)
class ODEEstimator:
    """log p(x) - log q(x | v) by the probability-flow ODE, x a dequantised image.

    Attributes:
        sde: the process.
        score_fn: its score.
        dequantizer: from levels to x; None for continuous data.
        divergence: "hutchinson" or "exact".
        probes: number of Hutchinson probes.
        noise: "rademacher" or "gaussian".
        options: further ones of ``log_likelihood``.
    """

    sde: SDE
    score_fn: ModelFn
    dequantizer: Dequantizer | None
    divergence: str = "hutchinson"
    probes: int = 1
    noise: str = "rademacher"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, raw: Batch, draws: Draws) -> Estimate:
        """Estimate a batch; its weights may be averaged over repeats (an importance-weighted bound)."""
        x, log_q = dequantized(raw, self.dequantizer, draws)
        hutchinson = self.divergence == "hutchinson"
        result = log_likelihood(
            self.sde,
            partial(_with_labels, self.score_fn, raw.y),
            x,
            divergence=self.divergence,
            probes=_probes(self.noise, self.probes, x, draws) if hutchinson else 1,
            noise=self.noise,
            **self.options,
        )
        variance = None if result.std_error is None else result.std_error.double().square()
        return Estimate(result.log_prob.double() - log_q, variance, result.nfe, result.z)


@dataclass(frozen=True)
class BoundEstimator:
    """The evidence lower bound of the SDE, or of DDPM's chain.

    A model of dequantised data is scored by the density of a dequantised image, log p(x0) - log q(x0 | v); a model of
    the levels as points (no dequantiser) by the discrete decoder, which gives each level its mass.

    Attributes:
        sde: the process.
        eps_fn: its predicted noise.
        quantizer: of the data; None for continuous data.
        dequantizer: from levels to x0; None for continuous data, or points.
        samples: places of the integral, or transitions of the chain.
        chain: number of steps of DDPM's chain; None for the SDE's bound.
    """

    sde: SDE
    eps_fn: ModelFn
    quantizer: Quantizer | None
    dequantizer: Dequantizer | None
    samples: int = 16
    chain: int | None = None

    def __call__(self, raw: Batch, draws: Draws) -> Estimate:
        """Estimate a batch."""
        log_q: Tensor | float
        if self.quantizer is not None and self.dequantizer is None:
            x0, log_q = self.quantizer.encode(raw.x).to(draws.device), 0.0
            decoder = partial(_decoded, self.quantizer, raw.x)
        else:
            x0, log_q = dequantized(raw, self.dequantizer, draws)
            decoder = None
        bound = elbo if self.chain is None else partial(ddpm_bound, steps=self.chain)
        with torch.no_grad():
            result = bound(
                self.sde,
                partial(_with_labels, self.eps_fn, raw.y),
                x0,
                samples=self.samples,
                decoder=decoder,
                u=draws.uniform("times", ()),
                eps=draws.normal("noise", (self.samples + 1, *x0.shape[1:])).transpose(0, 1),
            )
        return Estimate(result.log_prob.double() - log_q, None, result.nfe)


def dequantized(raw: Batch, dequantizer: Dequantizer | None, draws: Draws) -> tuple[Tensor, Tensor | float]:
    """Model values (B, *) and log q(x | v) (B,); continuous data as they are, with log q = 0."""
    if dequantizer is None:
        return raw.x.float(), 0.0
    x, log_q = dequantizer(raw.x, draws.uniform("dequantize", raw.x.shape[1:]))
    return x, log_q.double()


def _with_labels(model: ModelFn, y: Tensor | None, x: Tensor, t: Tensor) -> Tensor:
    return model(x, t, y)


def _decoded(quantizer: Quantizer, v: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-probability of the levels, nats (B,)."""
    return quantizer.log_mass(v, mean, std, points=True).reshape(len(v), -1).sum(1)


def _probes(noise: str, count: int, x: Tensor, draws: Draws) -> Tensor:
    """Probes (K, B, *), each image's own, and the same in all its repeats.

    So their noise is common to the repeats, and nearly cancels in the weights of the importance-weighted bound, which
    noise of each draw's own would lower by half its variance.
    """
    like = torch.empty(x.shape[1:], dtype=x.dtype)  # on the CPU, as the streams are
    return draws.of_image().each("probes", partial(draw_probes, like, count, noise)).transpose(0, 1)
