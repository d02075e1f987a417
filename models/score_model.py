"""The one wrapper that turns a network F(x, c_noise, y) into eps_hat, score and denoised image of a process."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.chain import ChainIndex
from models.graphed import Graphed
from models.layers import products_in
from models.lowered import Lowered
from sde_lib import PREDICTIONS, SDE, lookup, match_dims
from sde_lib.sde import batch_time

Conditioning = Callable[[SDE, Tensor], Tensor]
"""(sde, t: (B,)) -> c_noise (B,), of the order of 0 .. 1000 as the sinusoidal embedding likes it."""


def _time(sde: SDE, t: Tensor) -> Tensor:
    return 999 * t


def _time_left(sde: SDE, t: Tensor) -> Tensor:
    return 999 * (1 - t)


def _log_snr(sde: SDE, t: Tensor) -> Tensor:
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.T], dtype=torch.float64))
    most, least = ends.tolist()
    return 999 * (most - sde.log_snr(t)) / (most - least)


def _log_sigma(sde: SDE, t: Tensor) -> Tensor:
    return sde.sigma(t).log()


CONDITIONINGS: dict[str, Conditioning] = {
    "time": _time,
    "time_left": _time_left,
    "log_snr": _log_snr,
    "log_sigma": _log_sigma,
    "chain": ChainIndex(),
}
"""Name -> what the network is told of the noise level.

time: 999 t, the index of DDPM's 1000 steps. time_left: 999 (1 - t), which counts as NCSN does, from the largest noise
down. log_snr: the place of lambda(t) between t_min (0) and T (999), which resolves small noise as well as large.
log_sigma: log sigma(t), for networks with Fourier features (NCSN++). chain: the step of DDPM's chain that has the
log-SNR of t, for networks that were trained on its steps; ``ChainIndex`` makes others.
"""

PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ScoreModel(nn.Module):
    """Score of a process, by a network and the meaning of its output: score = -eps_hat / sigma(t).

    eps_hat = k(t) x + c(t) F(c_in(t) x, c_noise(t), y) with the row of ``PREDICTIONS``. The network runs in the chosen
    precision; everything around it (time, coefficients, division by sigma) in the dtype of x.

    Args:
        net: module with forward(x, c_noise, y=None).
        sde: the forward process.
        prediction: a key of ``PREDICTIONS``.
        conditioning: a key of ``CONDITIONINGS``, or a function like them.
        sigma_data: standard deviation of the data, used by the "edm" row.
        precision: "float32", or "bfloat16" by autocast; may be set on a finished model too.

    Attributes:
        c_noise: the conditioning, as a function (sde, t) -> what the network is told.
    """

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        prediction: str = "eps",
        conditioning: str | Conditioning = "time",
        *,
        sigma_data: float = 0.5,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.net = net
        self.sde = sde
        self.prediction = prediction
        self.conditioning = conditioning
        self.sigma_data = sigma_data
        self.precision = precision
        self._row = lookup(PREDICTIONS, prediction, "prediction")
        self.c_noise: Conditioning = (
            conditioning if callable(conditioning) else lookup(CONDITIONINGS, conditioning, "conditioning")
        )
        lookup(PRECISIONS, precision, "precision")
        self._lowered = Lowered()
        self._graphed = Graphed()

    def around(self, net: nn.Module) -> "ScoreModel":
        """The same wrapper of another network, such as this one in a wrapper of its own."""
        return ScoreModel(
            net,
            self.sde,
            self.prediction,
            self.conditioning,
            sigma_data=self.sigma_data,
            precision=self.precision,
        )

    def eps(self, x: Tensor, t: Tensor | float, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Predicted noise eps_hat.

        Args:
            x: noisy data (B, *).
            t: time () or (B,).
            y: class labels (B,) or attributes (B, A), -1 for unknown; None for nothing known.
            augment: how the data were augmented (B, D), in training; None for not at all.
        """
        t = batch_time(t, x)
        c_in, k, c = self._row(*self.sde.marginal(t), self.sigma_data)
        dtype = PRECISIONS[self.precision]
        # a state in float64 runs through a network in float32
        inner = next(self.net.parameters(), x).dtype if x.dtype == torch.float64 else x.dtype
        told = () if augment is None else (augment,)
        with products_in(dtype, x.device):
            out = self._run(dtype, (match_dims(c_in, x) * x).to(inner), self.c_noise(self.sde, t).to(inner), y, *told)
        return match_dims(k, x) * x + match_dims(c, x) * out.to(x.dtype)

    def _run(self, dtype: torch.dtype, *arguments: Tensor | None) -> Tensor:
        """The network's output; a frozen one runs with weights in the precision of its products, and by a graph."""
        if any(p.requires_grad for p in self.net.parameters()):
            return self.net(*arguments)
        net = self.net if dtype == torch.float32 else self._lowered.of(self.net)
        return self._graphed(net, *arguments)

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        """Score, -eps_hat / sigma(t), shape of x."""
        sigma = self.sde.sigma(batch_time(t, x))
        return -self.eps(x, t, y) / match_dims(sigma, x)

    def denoise(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        """E[x0 | x_t = x] = (x - sigma eps_hat) / alpha, shape of x."""
        alpha, sigma = self.sde.marginal(batch_time(t, x))
        return (x - match_dims(sigma, x) * self.eps(x, t, y)) / match_dims(alpha, x)
