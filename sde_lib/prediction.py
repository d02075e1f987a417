"""What a network's output F means: every prediction type is one row of eps_hat = k(t) x_t + c(t) F(c_in(t) x_t).

From eps_hat follow the score, -eps_hat / sigma, and the denoised E[x0 | x_t] = (x_t - sigma eps_hat) / alpha; types are
converted through eps only, so n types need n rows. With m^2 = alpha^2 + sigma^2, d the data's standard deviation and
n^2 = alpha^2 d^2 + sigma^2:

    type    c_in   k              c                  F predicts
    eps     1      0              1                  the noise (arXiv 2006.11239)
    score   1      0              -sigma             the score (arXiv 2011.13456)
    x0      1      1 / sigma      -alpha / sigma     the data
    v       1      sigma / m^2    alpha / m^2        alpha eps - sigma x0 (arXiv 2202.00512)
    edm     1/n    sigma / n^2    -alpha d / n       arXiv 2206.00364, table 1, at any (alpha, sigma)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """Coefficients of eps_hat = k x_t + c F(c_in x_t), each of t's shape."""

    c_in: Tensor
    k: Tensor
    c: Tensor


Prediction = Callable[[Tensor, Tensor, float], Coefficients]
"""(alpha, sigma, sigma_data) -> Coefficients."""


def _eps(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Coefficients:
    return Coefficients(torch.ones_like(sigma), torch.zeros_like(sigma), torch.ones_like(sigma))


def _score(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Coefficients:
    return Coefficients(torch.ones_like(sigma), torch.zeros_like(sigma), -sigma)


def _x0(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Coefficients:
    return Coefficients(torch.ones_like(sigma), 1 / sigma, -alpha / sigma)


def _v(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Coefficients:
    m2 = alpha.square() + sigma.square()
    return Coefficients(torch.ones_like(sigma), sigma / m2, alpha / m2)


def _edm(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Coefficients:
    n = torch.hypot(alpha * sigma_data, sigma)
    return Coefficients(1 / n, sigma / n.square(), -alpha * sigma_data / n)


PREDICTIONS: dict[str, Prediction] = {"eps": _eps, "score": _score, "x0": _x0, "v": _v, "edm": _edm}
