"""Networks that were trained on the steps of a chain, in continuous time."""

import torch
from torch import Tensor

from sde_lib import SDE, chain_alphas_cumprod


class ChainIndex:
    """c_noise(t): the place i on a chain at which its noise level is that of the process, as a real number.

    The chain x_i = sqrt(a_i) x_0 + sqrt(1 - a_i) eps has the log-SNR log(a_i / (1 - a_i)); between its steps i is
    linear in the log-SNR, and beyond its ends it stays there. So a network of 1000 steps runs in any sampler, and at
    the times of its own steps it is told their very numbers.

    Args:
        chain: a key of ``sde_lib.CHAINS``.
        steps: its length.
        first: beta_0; None for 0.1 / steps.
        last: the last beta; None for 20 / steps.
        scale: of the result, for networks that are told 1000 i / steps.
    """

    def __init__(
        self,
        chain: str = "linear",
        steps: int = 1000,
        first: float | None = None,
        last: float | None = None,
        scale: float = 1.0,
    ) -> None:
        kept = chain_alphas_cumprod(chain, steps, first, last)
        self.minus_log_snr = torch.log1p(-kept) - kept.log()  # rising
        self.ends = self.minus_log_snr[[0, -1]].tolist()
        self.scale = scale
        self._copies: dict[torch.device, Tensor] = {}

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """Times (B,) -> c_noise (B,)."""
        if t.device not in self._copies:
            self._copies[t.device] = self.minus_log_snr.to(t.device)
        chain = self._copies[t.device]
        place = (-sde.log_snr(t.to(torch.float64))).clamp(*self.ends)
        after = torch.searchsorted(chain, place.contiguous()).clamp(1, len(chain) - 1)
        share = (chain[after] - place) / (chain[after] - chain[after - 1])
        return (self.scale * (after - share)).to(t.dtype)
