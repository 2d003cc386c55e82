"""The timesteps at which the few-step student calls its network."""

from __future__ import annotations

import torch

import fvd
from fvd.flow import shift_sigma
from fvd_dmd2.config import DMD2Config

LADDER_TIMESTEPS = 1000
"""Unit of ``dmd_denoising_steps``: 1000 is pure noise."""

_SHIFT_TOLERANCE = 1.0
"""Timesteps. A table of 1000 entries ends at 999, where flow matching ends at 1000: both are pure noise."""


def student_timesteps(config: DMD2Config, flow_shift: float) -> tuple[float, ...]:
    """The ladder as sampled and trained: without a trailing 0, warped (D -> N shift(D / N)) where the run file asks."""
    if not config.warp_denoising_step:
        return config.trained_steps
    return tuple(LADDER_TIMESTEPS * shift_sigma(step / LADDER_TIMESTEPS, flow_shift) for step in config.trained_steps)


def check_shift(config: DMD2Config, adapter: fvd.Adapter, timesteps: tuple[float, ...]) -> None:
    """Raise FvdError where the family shifts timesteps by another law than `student_timesteps`, which must do with the run
    file alone: schedules other than flow matching's do, unless their flow_shift is 1."""
    if not config.warp_denoising_step:
        return
    shifted = adapter.shift_and_clamp_timestep(torch.tensor(config.trained_steps, device=adapter.device)).tolist()
    if any(abs(own - ours) > _SHIFT_TOLERANCE for own, ours in zip(shifted, timesteps, strict=True)):
        raise fvd.FvdError(
            "method_config.warp_denoising_step: this family's schedule is not shifted as flow matching is",
            cure=f"Leave it out and write dmd_denoising_steps: [{', '.join(f'{own:.1f}' for own in shifted)}]",
        )


def unshifted_timestep(adapter: fvd.Adapter, timestep: float) -> float:
    """The t that ``adapter.shift_and_clamp_timestep`` maps to ``timestep``, by bisection: any increasing schedule will do."""
    low, high = 0.0, float(adapter.num_train_timesteps)
    for _ in range(60):
        middle = (low + high) / 2
        shifted = adapter.shift_and_clamp_timestep(torch.tensor([middle], dtype=torch.float64))
        low, high = (middle, high) if float(shifted) < timestep else (low, middle)
    return (low + high) / 2
