"""Gaussian mixtures: the exact oracle for every process.

If x0 ~ sum_k w_k N(m_k, C_k) then x_t ~ sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I): density, score and samples of
every p_t are closed form. With C_k = U_k diag(e_k) U_k^T the inverse is U_k diag(1 / (alpha^2 e_k + sigma^2)) U_k^T at
every time.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_lib.sde import SDE, ScoreFn, batch_time


class GaussianMixture:
    """A mixture of K Gaussians over any shape.

    Args:
        weights: (K,), positive; normalised here.
        means: (K, *), any trailing shape of D elements in all.
        covariances: (K, D, D) or one (D, D) for all; give this or ``std``.
        std: isotropic standard deviation, a number or (K,); give this or ``covariances``.

    Raises:
        ValueError: shapes do not fit, weights or eigenvalues are not positive, both or neither of covariances and std.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor,
        covariances: Tensor | None = None,
        *,
        std: Tensor | float | None = None,
    ) -> None:
        weights = torch.as_tensor(weights, dtype=torch.float64)
        means = torch.as_tensor(means, dtype=torch.float64)
        if weights.ndim != 1 or means.ndim < 2 or len(means) != len(weights):
            raise ValueError(f"weights {tuple(weights.shape)} and means {tuple(means.shape)}: give (K,) and (K, *)")
        if not (weights > 0).all():
            raise ValueError(f"weights {weights.tolist()} must all be above 0")
        self.shape = tuple(means.shape[1:])
        self.weights = weights / weights.sum()
        self.means = means.flatten(1)  # (K, D)
        self.eigenvalues, self.eigenvectors = self._spectrum(covariances, std)  # (K, D), (K, D, D)

    def _spectrum(self, covariances: Tensor | None, std: Tensor | float | None) -> tuple[Tensor, Tensor]:
        k, d = self.means.shape
        if (covariances is None) == (std is None):
            raise ValueError("give either covariances or std")
        if covariances is None:
            variances = torch.as_tensor(std, dtype=torch.float64).square()
            if variances.shape not in ((), (1,), (k,)):
                raise ValueError(f"std {tuple(variances.shape)}: give a number or {(k,)}")
            variances = variances.expand(k)
            values, vectors = variances.reshape(k, 1).expand(k, d), torch.eye(d, dtype=torch.float64).expand(k, d, d)
        else:
            covariances = torch.as_tensor(covariances, dtype=torch.float64)
            if covariances.shape[-2:] != (d, d) or covariances.shape[:-2] not in ((), (k,)):
                raise ValueError(f"covariances {tuple(covariances.shape)}: give {(k, d, d)} or {(d, d)}")
            values, vectors = torch.linalg.eigh(covariances.expand(k, d, d))
        if not (values > 0).all():
            raise ValueError("a covariance is not positive definite")
        return values, vectors

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, shape (*)."""
        return (self.weights @ self.means).reshape(self.shape)

    @property
    def covariances(self) -> Tensor:
        """Covariance of each component, (K, D, D)."""
        return self.eigenvectors * self.eigenvalues.unsqueeze(1) @ self.eigenvectors.mT

    @property
    def covariance(self) -> Tensor:
        """Covariance of the mixture over its flattened dimensions, (D, D)."""
        centred = self.means - self.weights @ self.means
        between = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + between

    def marginal(self, sde: SDE, t: float) -> "GaussianMixture":
        """The law of x_t, itself a mixture."""
        alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
        noise = sigma.square() * torch.eye(self.means.shape[1], dtype=torch.float64)
        means = (alpha * self.means).reshape(-1, *self.shape)
        return GaussianMixture(self.weights, means, alpha.square() * self.covariances + noise)

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw n samples, shape (n, *)."""
        weights, means, values, vectors = self._parameters(device, dtype or torch.get_default_dtype())
        component = torch.multinomial(weights, n, replacement=True, generator=generator)
        z = torch.randn(n, means.shape[1], generator=generator, device=device, dtype=dtype)
        spread = torch.einsum("kij,bj->kbi", vectors * values.sqrt().unsqueeze(1), z)
        return (means[component] + spread[component, torch.arange(n, device=component.device)]).reshape(n, *self.shape)

    def log_prob(self, x: Tensor, sde: SDE | None = None, t: Tensor | float = 0.0) -> Tensor:
        """Log p_t(x), in nats, shape (B,); without a process, the log density of the data.

        Args:
            x: (B, *).
            sde: the process, or None for t = "before any noise".
            t: time () or (B,).
        """
        return self._component_log_probs(x, sde, t)[0].logsumexp(1)

    def responsibilities(self, x: Tensor, sde: SDE | None = None, t: Tensor | float = 0.0) -> Tensor:
        """Posterior probability of each component given x, (B, K)."""
        return self._component_log_probs(x, sde, t)[0].softmax(1)

    def score(self, x: Tensor, sde: SDE | None = None, t: Tensor | float = 0.0) -> Tensor:
        """grad_x log p_t(x), shape of x, by the closed form (and itself differentiable in x)."""
        logits, gradients = self._component_log_probs(x, sde, t)
        return torch.einsum("bk,bkd->bd", logits.softmax(1), gradients).reshape(x.shape)

    def score_fn(self, sde: SDE) -> ScoreFn:
        """The exact score of a process that starts from this mixture, as (x, t) -> score."""
        return lambda x, t: self.score(x, sde, t)

    def _component_log_probs(self, x: Tensor, sde: SDE | None, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Log w_k N(x; ...) of shape (B, K), and the gradient of each log N in x, (B, K, D)."""
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this mixture lives on (B, {', '.join(map(str, self.shape))})"
            )
        weights, means, values, vectors = self._parameters(x.device, x.dtype)
        if sde is None:
            alpha, sigma = x.new_ones(len(x)), x.new_zeros(len(x))
        else:
            alpha, sigma = sde.marginal(batch_time(t, x))
        alpha, variance = alpha.reshape(-1, 1, 1), sigma.square().reshape(-1, 1, 1)
        spread = alpha.square() * values + variance  # (B, K, D)
        centred = x.flatten(1).unsqueeze(1) - alpha * means  # (B, K, D)
        rotated = torch.einsum("kij,bki->bkj", vectors, centred)
        log_normaliser = 0.5 * (spread.log().sum(2) + means.shape[1] * math.log(2 * math.pi))
        logits = weights.log() - 0.5 * (rotated.square() / spread).sum(2) - log_normaliser
        return logits, -torch.einsum("kij,bkj->bki", vectors, rotated / spread)

    def _parameters(self, device: torch.device | str | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
        own = (self.weights, self.means, self.eigenvalues, self.eigenvectors)
        return tuple(tensor.to(device=device, dtype=dtype) for tensor in own)
