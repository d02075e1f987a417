"""From levels to model values with a known density, so that a density model can be scored on discrete data.

For any density q(x | v) on the cell of the level v, Jensen's inequality bounds the probability of the levels from below
(arXiv 1511.01844), and K draws tighten the bound (arXiv 1902.00275):

    log P(v)  >=  E[log p(x) - log q(x | v)],       log P(v)  >=  E[log 1/K sum_k p(x_k) / q(x_k | v)],  x ~ q(. | v).

A dequantiser is a function of numbers u, uniform in [0, 1): whose draws they are is the caller's matter.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from data.quantizer import Quantizer


class Dequantized(NamedTuple):
    """Model values ``x`` (B, *), float32, and ``log_q`` (B,), the log density of x given the levels, nats."""

    x: Tensor
    log_q: Tensor


Dequantizer = Callable[[Tensor, Tensor], Dequantized]
"""(levels v: (B, *), u: (B, *) in [0, 1)) -> Dequantized."""


class UniformDequantizer:
    """Uniform in the bin of the level: log q = -D log(bin width). For models of dequantised data.

    Args:
        quantizer: that of the data set.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def __call__(self, v: Tensor, u: Tensor) -> Dequantized:
        """See ``Dequantizer``."""
        x = self.quantizer.place(v, u)
        log_q = -x[0].numel() * math.log(self.quantizer.bin_width)
        return Dequantized(x, torch.full((len(x),), log_q, dtype=torch.float64, device=x.device))


class TruncatedNormalDequantizer:
    """x = alpha c_v + sigma z with z standard normal, cut off where the cells of two levels meet (arXiv 2305.03935).

    For models of the levels as points c_v = ``encode(v)``: at the time of this alpha and sigma they know x as the noisy
    image that it is, and nothing has to be trained. With the distance d of two points and tau = alpha d / (2 sigma),

        log q = sum_i [-z_i^2 / 2 - log(2 pi) / 2 - log sigma - log(2 Phi(tau) - 1)],    |z_i| <= tau.

    The bound is good where little is cut off, tau of 3 and above.

    Args:
        quantizer: that of the data set.
        alpha: mean coefficient of the process at the time where the likelihood starts.
        sigma: its standard deviation there, above 0.
    """

    def __init__(self, quantizer: Quantizer, alpha: float, sigma: float) -> None:
        if not (alpha > 0 and sigma > 0):
            raise ValueError(f"alpha is {alpha!r} and sigma {sigma!r}; both must be above 0")
        self.quantizer, self.alpha, self.sigma = quantizer, alpha, sigma
        self.tau = alpha * (quantizer.high - quantizer.low) / (quantizer.levels - 1) / (2 * sigma)

    def __call__(self, v: Tensor, u: Tensor) -> Dequantized:
        """See ``Dequantizer``."""
        inside = math.erf(self.tau / math.sqrt(2))  # 2 Phi(tau) - 1
        middle = u.double() + 2**-25  # of the float32 step of u: at u = 0 z is -5.4, not the rim, however large tau is
        share = (1 - inside) / 2 + inside * middle
        z = torch.special.ndtri(share).clamp(-self.tau, self.tau)
        x = self.alpha * self.quantizer.encode(v).double() + self.sigma * z
        constant = math.log(2 * math.pi) / 2 + math.log(self.sigma) + math.log(inside)
        return Dequantized(x.float(), (-z.square() / 2 - constant).reshape(len(v), -1).sum(1))
