"""What a method asks a validator to sample. Data only: the trainer owns the validator and the trackers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fvd.roles import RoleHandle

ValidationWeights = Literal["both", "ema", "raw"]


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """How a trained role is meant to be sampled. A method derives it from the run file alone, so that `fvd sample`
    needs neither teacher nor optimizer.

    role: whose weights. sampler_kind: a registered sampler (``ode``, ``sde``, ``ddim``).
    sampling_steps: numbers of steps to show; one video a prompt for each.
    sampling_timesteps: the exact timesteps, descending, where a student was trained on a ladder; then
        ``sampling_steps`` holds just its length.
    shift_timesteps: ``sampling_timesteps`` are before the flow shift: the adapter's ``shift_and_clamp_timestep`` places them,
        whatever the family's schedule.
    guidance_scale: standard convention, 1.0 = none.
    """

    role: str
    sampler_kind: str
    sampling_steps: tuple[int, ...]
    sampling_timesteps: tuple[float, ...] | None = None
    shift_timesteps: bool = False
    guidance_scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class GuidedColumn:
    """A role whose x0 prediction a panel shows.

    guidance_scale: standard convention, 1.0 = none. uncond: what the unconditional prediction is conditioned on, the family's
    negative prompt or embeddings of zeros.
    """

    handle: RoleHandle
    guidance_scale: float = 1.0
    uncond: Literal["negative_prompt", "zero"] = "negative_prompt"


@dataclass(frozen=True, kw_only=True)
class PanelRequest:
    """Predictions to show side by side: what each column makes of one noised sample of the planned role.

    columns: label -> role. timesteps: where the sample is noised, one row each; in [0, num_train_timesteps], shifted already.
    """

    columns: Mapping[str, GuidedColumn]
    timesteps: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ValidationRequest:
    """A sampling plan with its role resolved.

    weights: whether to sample with the trained weights (``raw``), with their average (``ema``), or with each, from the same
    noise (``both``: raw alone where the role has no average). panel: None for none.
    """

    plan: SamplingPlan
    sample_handle: RoleHandle
    weights: ValidationWeights = "both"
    panel: PanelRequest | None = None
