"""Densities of the training timestep (Esser et al. 2024, arXiv:2403.03206, section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import fvd
from fvd_finetune.config import FinetuneConfig


def sample_u(config: FinetuneConfig, rng: fvd.StepRandom) -> Tensor:
    """u [B] in [0, 1], float32, one draw a sample; large u is low noise."""
    match config.timestep_density:
        case "uniform":
            return rng.rand()
        case "logit_normal":
            return torch.sigmoid(config.logit_mean + config.logit_std * rng.randn())
        case "mode":
            return mode_density(rng.rand(), config.mode_scale)


def mode_density(uniform: Tensor, scale: float) -> Tensor:
    """u = 1 - r - scale (cos^2(pi r / 2) - 1 + r), eq. 20; monotone in r for -1 <= scale <= 2 / (pi - 2)."""
    return 1 - uniform - scale * (torch.cos(math.pi / 2 * uniform) ** 2 - 1 + uniform)
