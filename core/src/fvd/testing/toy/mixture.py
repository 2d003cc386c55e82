"""A Gaussian mixture of which everything is known, and the distance by which samples are judged.

    p(x0) = Σ_k w_k N(x0; μ_k, s² I)          x_t = α x0 + σ noise

Given the mode k, x0 and x_t are jointly Gaussian, so the posterior means of x0 and of noise have closed forms; over the
modes they are averaged with p(k | x_t). With c² = α² s² + σ², the variance of x_t inside a mode:

    E[x0 | x_t, k]    = μ_k + α s² (x_t − α μ_k) / c²
    E[noise | x_t, k] = σ (x_t − α μ_k) / c²
    p(k | x_t)        ∝ w_k exp(−|x_t − α μ_k|² / 2 c²)

s > 0 keeps c away from 0 at both ends. Everything is computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """What is known of a noised point: the means of x0 and of noise given x_t, [B, D], float64."""

    x0: Tensor
    noise: Tensor


class GaussianMixture:
    """``means`` [K, D], one ``std``, ``weights`` [K] (default: equal; scaled to sum to 1)."""

    def __init__(self, means: Tensor, std: float, weights: Tensor | None = None) -> None:
        if means.ndim != 2 or std <= 0:
            raise ValueError(f"means must be [K, D] and std above 0, got {list(means.shape)} and {std}")
        self.means = means.double()
        self.std = std
        given = torch.ones(len(means)) if weights is None else weights
        self.weights = given.to(self.means) / given.sum()

    def sample(self, count: int, generator: torch.Generator, *, weights: Tensor | None = None) -> Tensor:
        """[count, D], float64, on the CPU, whose ``generator`` it takes.

        weights: in place of the mixture's own, [K], or [count, K], each sample's own.
        """
        chosen = (self.weights if weights is None else weights).cpu().expand(count, -1)
        modes = torch.multinomial(chosen, 1, generator=generator)[:, 0]
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means.cpu()[modes] + self.std * noise

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) of points [..., D] -> [...], float64."""
        dimensions = self.means.shape[1]
        normaliser = dimensions * math.log(self.std * math.sqrt(2 * math.pi))
        return torch.logsumexp(self.weights.log() - self._energies(x, self.means, self.std**2), dim=-1) - normaliser

    @property
    def root_mean_square(self) -> float:
        """Root mean square of one dimension of x0: its standard deviation, where the means add up to 0."""
        second_moment = (self.weights[:, None] * self.means.square()).sum(dim=0).mean()
        return math.sqrt(float(second_moment) + self.std**2)

    def noised(self, alpha: float, sigma: float) -> GaussianMixture:
        """The distribution of α x0 + σ noise: again a mixture."""
        return GaussianMixture(alpha * self.means, math.sqrt((alpha * self.std) ** 2 + sigma**2), self.weights)

    def posterior(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, weights: Tensor | None = None) -> Posterior:
        """Means of x0 and of noise given x_t [B, D] with α, σ [B]; ``weights`` [B, K]: each sample's own mode weights."""
        x_t, alpha, sigma = x_t.double(), alpha.double()[:, None], sigma.double()[:, None]
        weights = self.weights.expand(len(x_t), -1) if weights is None else weights.double()
        variance = (alpha * self.std) ** 2 + sigma**2
        offsets = x_t[:, None] - alpha[:, None] * self.means  # [B, K, D]
        energies = offsets.square().sum(dim=-1) / (2 * variance)
        responsibilities = torch.softmax(weights.log() - energies, dim=-1)
        expected_offset = (responsibilities[..., None] * offsets).sum(dim=1)
        x0 = responsibilities @ self.means + alpha * self.std**2 / variance * expected_offset
        return Posterior(x0=x0, noise=sigma / variance * expected_offset)

    @staticmethod
    def _energies(x: Tensor, means: Tensor, variance: float) -> Tensor:
        return (x.double()[..., None, :] - means).square().sum(dim=-1) / (2 * variance)


def circle(modes: int, radius: float, std: float, *, device: torch.device | None = None) -> GaussianMixture:
    """``modes`` Gaussians evenly spaced on a circle in the plane; mode 0 lies on the first axis."""
    angles = torch.arange(modes, dtype=torch.float64, device=device) * (2 * math.pi / modes)
    return GaussianMixture(radius * torch.stack([angles.cos(), angles.sin()], dim=1), std)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """``2 E|A − B| − E|A − A'| − E|B − B'|`` from samples [N, D] and [M, D]: 0 in the mean exactly where both come from one
    distribution (Székely & Rizzo 2013). The unbiased estimate, which may fall below 0; float64, N M distances."""
    a, b = a.double(), b.double()
    return float(2 * torch.cdist(a, b).mean() - _mean_distance(a) - _mean_distance(b))


def _mean_distance(x: Tensor) -> Tensor:
    """Mean over pairs of different points."""
    return torch.pdist(x).mean()
