"""The timesteps at which the few-step student calls its network."""

from __future__ import annotations

from fvd.flow import shift_sigma
from fvd_dmd2.config import DMD2Config

LADDER_TIMESTEPS = 1000
"""Unit of ``dmd_denoising_steps``: 1000 is pure noise."""


def student_timesteps(config: DMD2Config, flow_shift: float) -> tuple[float, ...]:
    """The ladder as sampled and trained: without a trailing 0, warped (D -> N shift(D / N)) where the run file asks."""
    if not config.warp_denoising_step:
        return config.trained_steps
    return tuple(LADDER_TIMESTEPS * shift_sigma(step / LADDER_TIMESTEPS, flow_shift) for step in config.trained_steps)
