"""At which timesteps to train: densities and ranges, as pure functions of uniform or normal draws.

A draw is ``rng.rand()`` or ``rng.randn()`` of `fvd.StepRandom`, one a sample. The flow shift s comes after the density,
σ' = s σ / (1 + (s − 1) σ) (Esser et al. 2024, eq. 23), by the adapter's ``shift_and_clamp_timestep``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fvd.adapters import Adapter


def logit_normal(normal: Tensor, mean: float, std: float) -> Tensor:
    """u = sigmoid(mean + std · normal), in (0, 1) (Esser et al. 2024, arXiv:2403.03206, section 3.1)."""
    return torch.sigmoid(mean + std * normal)


def mode(uniform: Tensor, scale: float) -> Tensor:
    """u = 1 − r − scale (cos²(π r / 2) − 1 + r) of uniform r, in [0, 1] (Esser et al. 2024, eq. 20). 0 is uniform, positive
    favours the middle, negative the ends; monotone in r for −1 <= scale <= 2 / (π − 2)."""
    return 1 - uniform - scale * (torch.cos(math.pi / 2 * uniform) ** 2 - 1 + uniform)


def inside(uniform: Tensor, first: float, last: float) -> Tensor:
    """Uniform in [first, last)."""
    return first + (last - first) * uniform


def integers_inside(uniform: Tensor, first: int, last: int) -> Tensor:
    """Uniform over the integers first, …, last, both included; as floats."""
    # (last - first + 1) * (1 - 2^-24) may round up.
    return (first + ((last - first + 1) * uniform).floor()).clamp(max=last)


def unshifted(adapter: Adapter, timestep: float, shift: float | None = None) -> float:
    """The t that ``adapter.shift_and_clamp_timestep(t, shift)`` maps to ``timestep``, by bisection: right on any increasing
    schedule. What is uniform between the pre-images of two timesteps stays between them when it has been shifted, with no
    mass at the ends."""
    low, high = 0.0, float(adapter.num_train_timesteps)
    for _ in range(60):
        middle = (low + high) / 2
        shifted = adapter.shift_and_clamp_timestep(torch.tensor([middle], dtype=torch.float64, device=adapter.device), shift)
        low, high = (middle, high) if float(shifted) < timestep else (low, middle)
    return (low + high) / 2
