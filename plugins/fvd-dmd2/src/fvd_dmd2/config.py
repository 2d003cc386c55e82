"""``method_config:`` of the method dmd2. No torch here."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

import fvd
from fvd.config.models import Betas, LrSchedulerName, StrictModel

RolloutMode = Literal["simulate", "data_latent"]
_ROLLOUT_ALIASES = {"sim": "simulate", "data": "data_latent", "vae_latent": "data_latent"}

DEFAULT_STANDARD_GUIDANCE_SCALE = 4.5

Ratio = Annotated[float, Field(ge=0, le=1)]
NoiseStep = Annotated[float, Field(ge=0, le=1000)]


def _full_rollout_name(value: object) -> object:
    return _ROLLOUT_ALIASES.get(value, value) if isinstance(value, str) else value


def _numbers_of_text(value: object) -> object:
    """``"1000,750,500,250"`` is a list, as older command lines write it."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class UncondConfig(StrictModel):
    """What the teacher's unconditional prediction is conditioned on, channel by channel."""

    text: Literal["negative_prompt", "zero", "keep"] = "negative_prompt"
    """negative_prompt: the family's; zero: embeddings of zeros; keep: the sample's own text (no guidance)."""
    image: Literal["keep", "zero", "drop"] | None = None
    """For families with image conditioning; none has it yet."""
    action: Literal["keep", "zero", "drop"] | None = None
    """For families with action conditioning; none has it yet."""
    on_missing: Literal["error", "ignore"] = "error"
    """What to do about a channel named here that no family has."""

    @model_validator(mode="after")
    def _channels_exist(self) -> Self:
        named = [channel for channel, policy in (("image", self.image), ("action", self.action)) if policy is not None]
        if named and self.on_missing == "error":
            raise ValueError(
                f"families have only the channel text yet, not {', '.join(named)}; remove it or set on_missing: ignore"
            )
        return self


def _default_uncond(value: object) -> object:
    return UncondConfig() if value is None else value


class DMD2Config(fvd.MethodConfig):
    """Settings of distribution matching distillation (arXiv:2405.14867)."""

    dmd_denoising_steps: Annotated[tuple[NoiseStep, ...], BeforeValidator(_numbers_of_text)]
    """The student's ladder: timesteps in [0, 1000], strictly descending, [1000, 750, 500, 250]. A trailing 0 ends the
    ladder for sampling and is never trained on."""
    warp_denoising_step: bool = False
    """Apply the flow shift to the ladder: at shift 8, [1000, 750, 500, 250] is [1000, 960, 888.9, 727.3]."""
    rollout_mode: Annotated[RolloutMode, BeforeValidator(_full_rollout_name)] = "simulate"
    """simulate: the student's input comes from its own steps from pure noise (needs text only); data_latent: from
    noised data."""
    generator_update_interval: PositiveInt = 5
    """Critic updates per student update: the student moves at every so many-th step, the critic at every step."""

    real_score_guidance_scale: NonNegativeFloat | None = None
    """Guidance of the teacher, in the convention below. Default: 4.5 in the standard convention, 3.5 as an offset."""
    guidance_convention: Literal["offset", "standard"] = "offset"
    """offset: x_c + w (x_c - x_u), 0 = none (schema v2); standard: x_u + s (x_c - x_u), 1 = none. s = w + 1."""
    cfg_uncond: Annotated[UncondConfig, BeforeValidator(_default_uncond)] = UncondConfig()
    """What the unconditional prediction is conditioned on."""

    min_timestep_ratio: Ratio = 0.02
    """Lowest noise level at which the scores are compared and the critic is trained."""
    max_timestep_ratio: Ratio = 0.98
    """Highest one."""

    critic_learning_rate: NonNegativeFloat | None = None
    """Default: training.learning_rate."""
    critic_betas: Betas | None = None
    """Default: training.betas."""
    critic_lr_scheduler: LrSchedulerName | None = None
    """Default: training.lr_scheduler."""

    attn_kind: Literal["dense", "vsa"] = "dense"
    """Kind of attention of the student, where its family has it. Teacher and critic are always dense."""

    @field_validator("dmd_denoising_steps")
    @classmethod
    def _ladder_descends(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if not any(steps):
            raise ValueError("needs at least one step above 0, for example [1000, 750, 500, 250]")
        for earlier, later in pairwise(steps):
            if later >= earlier:
                raise ValueError(f"must be strictly descending; {later:g} comes after {earlier:g}")
        return steps

    @model_validator(mode="after")
    def _timestep_range_is_open(self) -> Self:
        if self.min_timestep_ratio >= self.max_timestep_ratio:
            raise ValueError(
                f"min_timestep_ratio {self.min_timestep_ratio:g} must be below max_timestep_ratio {self.max_timestep_ratio:g}"
            )
        return self

    @property
    def trained_steps(self) -> tuple[float, ...]:
        """The ladder without a trailing 0, not warped."""
        return tuple(step for step in self.dmd_denoising_steps if step > 0)

    @property
    def standard_guidance_scale(self) -> float:
        """The teacher's guidance scale in the standard convention; 1.0 = none."""
        if self.real_score_guidance_scale is None:
            return DEFAULT_STANDARD_GUIDANCE_SCALE
        return self.real_score_guidance_scale + (1.0 if self.guidance_convention == "offset" else 0.0)
