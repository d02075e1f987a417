"""How far the end of a process is from the prior that stands in for it, given the mean and covariance of the data.

With data of mean m and covariance C of eigenvalues l_i, x_T = alpha x0 + sigma eps has mean alpha m and covariance
alpha^2 C + sigma^2 I. Against the prior N(0, p^2 I), the Gaussian of these moments has (in nats, over all dimensions)

    KL = 1/2 sum_i [ (v_i - 1) - log v_i ] + |alpha m|^2 / (2 p^2),    v_i = (alpha^2 l_i + sigma^2) / p^2

which is a lower bound of KL(p_T || prior), and close to it where the noise has made p_T nearly Gaussian. A sampler
starts from the prior where it should start from p_T: by the data-processing inequality the two laws of its samples are
at most that far apart, and by Pinsker's they differ in at most a share sqrt(KL / 2) of the samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianFit:
    """What of the first two moments of data a distance from an isotropic Gaussian needs.

    Attributes:
        mean_square: |m|^2.
        variances: eigenvalues of the covariance that may differ from 0, float64 (k,).
        dims: D; the other D - k eigenvalues are 0.
    """

    mean_square: float
    variances: Tensor
    dims: int


def fit_gaussian(x: Tensor) -> GaussianFit:
    """The moments of samples (N, *) themselves; for N < D from the Gram matrix, whose eigenvalues are the same."""
    flat = x.flatten(1).double()
    n, dims = flat.shape
    mean = flat.mean(0)
    centred = flat - mean
    product = centred.T @ centred if dims <= n else centred @ centred.T
    return GaussianFit(float(mean.square().sum()), torch.linalg.eigvalsh(product / n).clamp(min=0), dims)


def kl_from_prior(fit: GaussianFit, alpha: float, sigma: float, prior_std: float) -> float:
    """KL of the Gaussian of the moments of x_T from N(0, prior_std^2 I), in nats over all dimensions.

    Args:
        fit: moments of the data.
        alpha: mean coefficient at the end.
        sigma: standard deviation of the noise there.
        prior_std: of the prior.
    """
    alpha, sigma = alpha / prior_std, sigma / prior_std
    rest = torch.zeros(1, dtype=torch.float64)
    excess = torch.cat([fit.variances, rest]) * alpha**2 + (sigma**2 - 1)  # v_i - 1
    terms = 0.5 * (excess - torch.log1p(excess))
    return float(terms[:-1].sum() + (fit.dims - len(fit.variances)) * terms[-1]) + 0.5 * alpha**2 * fit.mean_square
