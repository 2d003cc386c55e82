"""What a method asks a validator to sample. Data only: the trainer owns the validator and the trackers."""

from __future__ import annotations

from dataclasses import dataclass

from fvd.roles import RoleHandle


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """How a trained role is meant to be sampled. A method derives it from the run file alone, so that `fvd sample`
    needs neither teacher nor optimizer.

    role: whose weights. sampler_kind: a registered sampler (``ode``, ``sde``).
    sampling_steps: numbers of steps to show; one video a prompt for each.
    sampling_timesteps: the exact timesteps, descending, where a student was trained on a ladder; then
        ``sampling_steps`` holds just its length.
    guidance_scale: standard convention, 1.0 = none.
    """

    role: str
    sampler_kind: str
    sampling_steps: tuple[int, ...]
    sampling_timesteps: tuple[float, ...] | None = None
    guidance_scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ValidationRequest:
    """A sampling plan with its role resolved."""

    sample_handle: RoleHandle
    sampler_kind: str
    sampling_steps: tuple[int, ...]
    sampling_timesteps: tuple[float, ...] | None = None
    guidance_scale: float = 1.0
