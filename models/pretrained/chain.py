"""Networks that were trained on the steps of a chain, in continuous time."""

import torch
from torch import Tensor

from sde_lib import SDE


class ChainIndex:
    """c_noise(t): the place i on a chain at which its noise level is that of the process, as a real number.

    The chain x_i = sqrt(a_i) x_0 + sqrt(1 - a_i) eps has the log-SNR log(a_i / (1 - a_i)); between its steps i is
    linear in the log-SNR, and beyond its ends it stays there. So a network of 1000 steps runs in any sampler, and at
    the times of its own steps it is told their very numbers.

    Args:
        alphas_cumprod: a_i, falling (N,).
        scale: of the result, for networks that are told 1000 i / N.
    """

    def __init__(self, alphas_cumprod: Tensor, scale: float = 1.0) -> None:
        a = alphas_cumprod.to(torch.float64)
        self.minus_log_snr = torch.log1p(-a) - a.log()  # rising
        self.scale = scale

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """Times (B,) -> c_noise (B,)."""
        chain = self.minus_log_snr.to(t.device)
        place = -sde.log_snr(t.to(torch.float64)).clamp(-float(chain[-1]), -float(chain[0]))
        after = torch.searchsorted(chain, place.contiguous()).clamp(1, len(chain) - 1)
        share = (chain[after] - place) / (chain[after] - chain[after - 1])
        return (self.scale * (after - share)).to(t.dtype)
