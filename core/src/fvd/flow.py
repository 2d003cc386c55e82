"""The mathematics of flow matching, once.

    x_t = (1 − σ) x0 + σ noise          velocity = d x_t / d σ = noise − x0
    σ(t) = t / num_train_timesteps      σ = 0 is data, σ = 1 is noise

Analytic, in float32 or better, never a nearest entry of a table. ``shift`` moves probability or steps towards noise
(Esser et al. 2024, eq. 23): σ' = s σ / (1 + (s − 1) σ); s = 1 changes nothing.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Sigma = TypeVar("Sigma", float, Tensor)


def expand_to(per_sample: Tensor, reference: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, ...] with the rank of ``reference``; a [B, T] tensor of frames -> [B, 1, T, 1, 1]."""
    if per_sample.ndim == 2:
        return per_sample[:, None, :, None, None]
    return per_sample.reshape(-1, *([1] * (reference.ndim - 1)))


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t at noise level ``sigma`` [B]; computed in float32, returned in the dtype of ``x0``."""
    s = expand_to(sigma.float(), x0)
    return ((1 - s) * x0.float() + s * noise.float()).to(x0.dtype)


def velocity_to_x0(velocity: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
    """x0 = x_t − σ velocity, float32."""
    return x_t.float() - expand_to(sigma.float(), x_t) * velocity.float()


def velocity_to_noise(velocity: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
    """noise = x_t + (1 − σ) velocity, float32."""
    return x_t.float() + (1 - expand_to(sigma.float(), x_t)) * velocity.float()


def shift_sigma(sigma: Sigma, shift: float) -> Sigma:
    """σ' = s σ / (1 + (s − 1) σ). Its inverse is the shift by 1 / s."""
    return shift * sigma / (1 + (shift - 1) * sigma)
