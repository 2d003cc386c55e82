"""The toy's networks: one to train, and one that is right.

Both have one signature, ``(x_t [B, C, 1, 1, 1], time [B], weights [B, K]) -> [B, C, 1, 1, 1]``, float32, where ``time`` is
t / num_train_timesteps in [0, 1] and ``weights`` those of the modes. What they predict is their `Parametrisation`'s.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fvd.rng import derive_seed
from fvd.testing.toy.mixture import GaussianMixture

FREQUENCIES = 4


class Parametrisation(Protocol):
    """A schedule, and what a network predicts on it."""

    def signal_and_noise(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) [B] at ``time`` [B]."""
        ...

    def prediction(self, x0: Tensor, noise: Tensor) -> Tensor:
        """The network's output that means these two, [B, D]."""
        ...


class FlowVelocity:
    """x_t = (1 − t) x0 + t noise; the network predicts noise − x0."""

    def signal_and_noise(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - time, time

    def prediction(self, x0: Tensor, noise: Tensor) -> Tensor:
        return noise - x0


class AnalyticNetwork(nn.Module):
    """The prediction with the least mean squared error, from the mixture itself, on whose device it runs; no parameters."""

    def __init__(self, parametrisation: Parametrisation, mixture: GaussianMixture) -> None:
        super().__init__()
        self._parametrisation = parametrisation
        self._mixture = mixture

    def forward(self, x_t: Tensor, time: Tensor, weights: Tensor) -> Tensor:
        alpha, sigma = self._parametrisation.signal_and_noise(time)
        posterior = self._mixture.posterior(x_t.flatten(1), alpha, sigma, weights)
        return self._parametrisation.prediction(posterior.x0, posterior.noise).float().reshape(x_t.shape)


class Block(nn.Module):
    """A residual layer, scaled and shifted by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition).chunk(2, dim=1)
        return hidden + functional.silu(self.inner(hidden) * (1 + scale) + shift)


@dataclass(frozen=True)
class Shape:
    """What a `ToyNetwork` is built from, besides its parametrisation. data_std: of each dimension of the data."""

    dimensions: int
    modes: int
    data_std: float
    width: int = 32
    depth: int = 2


class ToyNetwork(nn.Module):
    """A small MLP, modulated by time and text as diffusion transformers are: nine thousand weights.

    It corrects the best linear prediction, in units in which input and correction have variance 1 at every noise level
    (Karras et al. 2022, section 5): with v² = α² s² + σ² and s the data's standard deviation,

        x0 = α s² x_t / v² + (σ s / v) F          noise = σ x_t / v² − (α s / v) F          F = MLP(x_t / v, time, text)
    """

    def __init__(self, parametrisation: Parametrisation, shape: Shape) -> None:
        super().__init__()
        self._parametrisation = parametrisation
        self.shape = shape
        width = shape.width
        self.inputs = nn.Linear(shape.dimensions, width)
        self.condition = nn.Sequential(
            nn.Linear(shape.modes + 1 + 2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.blocks = nn.ModuleList(Block(width) for _ in range(shape.depth))
        self.scale = nn.Linear(width, width)
        self.outputs = nn.Linear(width, shape.dimensions)

    def forward(self, x_t: Tensor, time: Tensor, weights: Tensor) -> Tensor:
        points, std = x_t.flatten(1), self.shape.data_std
        alpha, sigma = (coefficient[:, None] for coefficient in self._parametrisation.signal_and_noise(time))
        spread = ((alpha * std) ** 2 + sigma**2).sqrt()
        correction = self._correction(points / spread, time, weights)
        x0 = alpha * std**2 / spread**2 * points + sigma * std / spread * correction
        noise = sigma / spread**2 * points - alpha * std / spread * correction
        return self._parametrisation.prediction(x0, noise).reshape(x_t.shape)

    def _correction(self, points: Tensor, time: Tensor, weights: Tensor) -> Tensor:
        phases = time[:, None] * math.pi * torch.arange(1, FREQUENCIES + 1, device=time.device)
        text = weights * math.sqrt(self.shape.modes)
        condition = self.condition(torch.cat([text, time[:, None], phases.sin(), phases.cos()], dim=1))
        hidden = self.inputs(points)
        for block in self.blocks:
            hidden = block(hidden, condition)
        correction: Tensor = self.outputs(hidden * (1 + self.scale(condition)))
        return correction

    def describe(self) -> dict[str, object]:
        """`Shape` as plain data."""
        return asdict(self.shape)


def random_network(parametrisation: Parametrisation, shape: Shape, seed: int) -> ToyNetwork:
    """Weights are a function of shape and seed; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("toy network", seed))
        return ToyNetwork(parametrisation, shape)
