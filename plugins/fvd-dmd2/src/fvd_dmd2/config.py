"""``method_config:`` of the method dmd2. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

import fvd
from fvd.accounting import Passes
from fvd.config.models import StrictModel
from fvd.config.optimization import RoleDefaults
from fvd_dmd2 import meaning
from fvd_dmd2.gan_config import GanConfig
from fvd_dmd2.presets import BEST_PRACTICE_ROLES, PRESETS, PresetName

RolloutMode = Literal["simulate", "data_latent"]
_ROLLOUT_ALIASES = {"sim": "simulate", "data": "data_latent", "vae_latent": "data_latent"}

DEFAULT_LADDER = (1000.0, 750.0, 500.0, 250.0)
DEFAULT_STANDARD_GUIDANCE_SCALE = 4.0

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


DISCRIMINATOR = "discriminator"
"""The role that brings the adversarial loss with it."""


def _over_preset(below: object, given: object) -> object:
    """What is given, over what the preset has there. Features of the teacher, which is frozen, are not trained along, whatever
    the preset says."""
    if not isinstance(below, dict) or not isinstance(given, dict):
        return given
    left_out = {"train_feature_source"} if given.get("feature_source") == "teacher" else set()
    return {name: value for name, value in below.items() if name not in left_out} | given


class DMD2Config(fvd.MethodConfig):
    """Settings of distribution matching distillation (arXiv:2405.14867)."""

    preset: PresetName | None = None
    """The conventions of a published system, for every key that is not given here. Default: best practice."""

    # --- the student's rollout ---
    dmd_denoising_steps: Annotated[tuple[NoiseStep, ...], BeforeValidator(_numbers_of_text)] = DEFAULT_LADDER
    """The student's ladder: timesteps in [0, 1000], strictly descending, [1000, 750, 500, 250]. A trailing 0 ends the
    ladder for sampling and is never trained on."""
    warp_denoising_step: bool = False
    """Apply the flow shift to the ladder: at shift 8, [1000, 750, 500, 250] is [1000, 960, 888.9, 727.3]. Where
    dmd_denoising_steps is not given either, true."""
    rollout_mode: Annotated[RolloutMode, BeforeValidator(_full_rollout_name)] = "simulate"
    """simulate: the student's input comes from its own steps from pure noise (needs text only); data_latent: from
    noised data."""
    between_steps: Literal["sde", "ode"] = "sde"
    """From one step to the next, in training and sampling: sde noises x0 afresh; ode keeps the noise that x0 was predicted
    from."""
    step_choice: Literal["batch", "sample"] = "batch"
    """Whose step is trained on: one for the whole step of all ranks, or each sample its own. Default of data_latent: sample."""
    early_exit: bool = True
    """simulate: stop at the step that is trained on; false goes down the whole ladder each time."""
    reuse_rollout: bool = True
    """The critic learns on the samples that the student's loss was taken on; false rolls out anew for it."""

    # --- when ---
    generator_update_interval: PositiveInt = 5
    """Critic updates per student update: the student moves at every so many-th step."""
    update_mode: Literal["joint", "either_or"] = "joint"
    """joint: the critic moves at every step; either_or: not at the student's, so that it moves once less per student update."""
    separate_graphs: bool = True
    """Backpropagate the student's loss before the critic's forward is made; false keeps both graphs in memory."""

    # --- the teacher's guidance ---
    real_score_guidance_scale: NonNegativeFloat | None = None
    """Guidance of the teacher, in the convention below. Default: 4 in the standard convention, 3 as an offset."""
    guidance_convention: Literal["offset", "standard"] = "offset"
    """offset: x_c + w (x_c - x_u), 0 = none (schema v2); standard: x_u + s (x_c - x_u), 1 = none. s = w + 1."""
    cfg_uncond: Annotated[UncondConfig, BeforeValidator(_default_uncond)] = UncondConfig()
    """What the unconditional prediction is conditioned on."""
    skip_unused_uncond: bool = True
    """Leave the teacher's unconditional forward out where the guidance makes nothing of it."""
    batch_guidance: bool = True
    """Conditional and unconditional forward of the teacher as one of twice the samples, where memory allows."""

    # --- where the scores are compared ---
    min_timestep_ratio: Ratio = 0.02
    """Lowest noise level at which the scores are compared."""
    max_timestep_ratio: Ratio = 0.98
    """Highest one."""
    score_timestep_draw: Literal["continuous", "integer"] = "continuous"
    """Timesteps before the shift: real numbers, or whole ones."""
    score_timestep_range: Literal["inside", "clamp", "before_shift"] = "inside"
    """inside: drawn so that they lie in the range after the shift; clamp: drawn over the whole schedule and clamped, which
    piles mass up at the ends (9 % at the upper one with shift 5); before_shift: drawn in the range, shifted, clamped to it."""
    score_timestep_shift: Annotated[float, Field(gt=0)] | None = None
    """Shift of the score timesteps. Default: pipeline_config.flow_shift."""
    score_timestep_choice: Literal["sample", "batch"] = "sample"
    """Each sample its own timestep, or one for all."""

    # --- the matching gradient ---
    normalizer: Literal["sample", "frame", "batch"] = "sample"
    """w = mean |x - R| over each sample, over each latent frame, or over the whole micro-batch."""
    normalizer_guard: Literal["floor", "add", "none"] = "floor"
    """max(w, epsilon), w + epsilon, or w. Non-finite samples are dropped and counted in any case."""
    normalizer_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    """epsilon of the guard."""

    # --- the critic ---
    critic_target: Literal["native", "x0"] = "native"
    """What its error is measured in: the network's own output, or x0 (for flow matching sigma^2 times the native error)."""
    critic_timestep_range: Literal["full", "score"] = "full"
    """Where it is trained: over the whole schedule, or where the scores are compared."""

    # --- further losses ---
    regression_weight: NonNegativeFloat = 0.0
    """Of the student's error at stored solutions of the teacher's ODE (DMD, eq. 9), which the data must hold, as
    `fvd data pairs` makes them. 0 is none."""
    gan: GanConfig = GanConfig()
    """The adversarial loss on real latents. It is there where the run file names the role discriminator."""

    attn_kind: Literal["dense", "vsa"] = "dense"
    """Kind of attention of the student, where its family has it. Teacher and critic are always dense."""

    @model_validator(mode="before")
    @classmethod
    def _what_is_not_given(cls, given: Any) -> Any:
        """The preset's values under what is given. A ladder that nobody names is warped; and where a rollout costs one forward,
        each sample has a step of its own, for a gradient of less variance."""
        if not isinstance(given, dict):
            return given  # for pydantic to refuse
        name = given.get("preset")
        values = dict(PRESETS[name].method_config) if isinstance(name, str) and name in PRESETS else {}
        values |= {key: _over_preset(values.get(key), value) for key, value in given.items()}
        if "dmd_denoising_steps" not in values:
            values.setdefault("warp_denoising_step", True)
        if _full_rollout_name(values.get("rollout_mode")) == "data_latent":
            values.setdefault("step_choice", "sample")
        return values

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

    @model_validator(mode="after")
    def _critic_is_trained(self) -> Self:
        if self.update_mode == "either_or" and self.generator_update_interval == 1:
            raise ValueError("at generator_update_interval 1, either_or would never train the critic; use 2 or more")
        return self

    # --- what the values mean ---
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

    @property
    def teacher_is_guided(self) -> bool:
        """Whether the unconditional prediction changes the teacher's."""
        return self.standard_guidance_scale != 1.0 and self.cfg_uncond.text != "keep"

    @property
    def needs_uncond(self) -> bool:
        """Whether the teacher makes an unconditional forward."""
        return self.teacher_is_guided or not self.skip_unused_uncond

    def student_is_due(self, iteration: int) -> bool:
        """At every interval-th step, counted from 1."""
        return iteration % self.generator_update_interval == 0

    def critic_is_due(self, iteration: int) -> bool:
        return self.update_mode == "joint" or not self.student_is_due(iteration)

    # --- what core asks ---
    def role_defaults(self, role: str) -> RoleDefaults:
        roles = BEST_PRACTICE_ROLES if self.preset is None else PRESETS[self.preset].roles
        return RoleDefaults.model_validate(roles.get(role, {}))

    def sampling_ladder(self) -> fvd.SamplingLadder:
        """The ladder that the student is trained on, with the steps that it is trained with, unguided."""
        kind = "sde" if self.between_steps == "sde" else "ddim"
        return fvd.SamplingLadder(sampler_kind=kind, timesteps=self.trained_steps, shift_timesteps=self.warp_denoising_step)

    def role_updates(self, run: fvd.RunConfig, role: str) -> int:
        """Critic and discriminator move together."""
        steps = run.training.max_train_steps
        of_student = steps // self.generator_update_interval
        if role == "student":
            return of_student
        return steps if self.update_mode == "joint" else steps - of_student

    def expected_passes(self, run: fvd.RunConfig) -> Mapping[str, Passes]:
        return expected_passes(self, run)

    def sources(self) -> Mapping[str, str]:
        return meaning.sources(self)

    def meanings(self, run: fvd.RunConfig) -> Mapping[str, str]:
        return meaning.meanings(self, run, adversarial=DISCRIMINATOR in run.roles)

    def headlines(self, run: fvd.RunConfig) -> Mapping[str, str]:
        return meaning.headlines(self, run, adversarial=DISCRIMINATOR in run.roles)


def expected_passes(config: DMD2Config, run: fvd.RunConfig) -> Mapping[str, Passes]:
    """Network passes of each role in one step, on average over a cycle of ``generator_update_interval`` steps."""
    due = 1 / config.generator_update_interval  # the student's share of steps
    critic_due = 1.0 if config.update_mode == "joint" else 1 - due
    rollouts = 1.0 if config.reuse_rollout or config.update_mode == "either_or" else 1 + due
    regression = due if config.regression_weight else 0.0
    student = Passes(
        forwards=rollouts * (1 + _steps_before_exit(config, run.training.train_batch_size)) + regression,
        backwards=due + regression,
    )
    teacher = Passes(forwards=due * (2 if config.needs_uncond else 1), backwards=0)
    critic = Passes(forwards=due + critic_due, backwards=critic_due)
    passes = {"student": student, "teacher": teacher, "critic": critic}
    if DISCRIMINATOR in run.roles:
        source, features = config.gan.feature_source, _feature_passes(config.gan, due, critic_due)
        passes[source] = Passes(passes[source].forwards + features.forwards, passes[source].backwards + features.backwards)
    return passes


def _feature_passes(gan: GanConfig, student_due: float, critic_due: float) -> Passes:
    """Of the network whose hidden states the discriminator looks at: the student's sample on student steps; a sample, a latent
    of the data, and the perturbed one of the approximate R1 on critic steps."""
    generator = student_due if gan.weight_generator else 0.0
    perturbed = 1 if gan.r1_weight and gan.r1 == "approximate" else 0
    forwards = generator + critic_due * (2 + perturbed)
    if gan.train_feature_source:
        return Passes(forwards, forwards)
    through_data = critic_due if gan.r1_weight and gan.r1 == "exact" else 0.0
    return Passes(forwards, generator + through_data)


def _steps_before_exit(config: DMD2Config, batch_size: int) -> float:
    """Forwards without gradient of one rollout: the mean of the last exit step of a batch."""
    if config.rollout_mode == "data_latent":
        return 0.0
    count = len(config.trained_steps)
    if not config.early_exit:
        return float(count - 1)
    draws = batch_size if config.step_choice == "sample" else 1
    # P(all exits <= m) = ((m + 1) / count)^draws, and the mean is the sum of P(last exit > m).
    return sum(1 - ((m + 1) / count) ** draws for m in range(count - 1))
