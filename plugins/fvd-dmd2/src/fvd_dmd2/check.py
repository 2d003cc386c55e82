"""What a valid run file of dmd2 means, where that is easily misread: notes and warnings. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import fvd
from fvd.config.changes import flatten
from fvd.data.parquet_footer import first_file, has_column
from fvd_dmd2.config import DISCRIMINATOR, DMD2Config
from fvd_dmd2.idle import idle_keys

if TYPE_CHECKING:
    from fvd.config.check import CheckContext

NEARLY_NOISE = 990
"""A ladder that begins below this says of pure noise that it is something else."""


def check_run_file(ctx: CheckContext) -> Iterator[fvd.Problem]:
    """Every finding of dmd2 about ``ctx.run``."""
    config = ctx.run.method_config
    if not isinstance(config, DMD2Config):  # another method, of whatever name
        return
    yield from _guidance(ctx, config)
    yield from _ladder(ctx, config)
    yield from _critic_rate(ctx, config)
    yield from _pairs(ctx, config)
    yield from _exact_r1(ctx, config)
    yield from _idle(ctx, config)
    yield from ctx.check_attn_kind("student", config.attn_kind)


def _guidance(ctx: CheckContext, config: DMD2Config) -> Iterator[fvd.Problem]:
    key, scale, said = "method_config.real_score_guidance_scale", config.standard_guidance_scale, "default"
    if config.real_score_guidance_scale is not None:
        said = f"{config.real_score_guidance_scale:g} ({config.guidance_convention})"
    yield ctx.problem(key, f"{said} = {scale:g} standard", severity="note")
    if scale < 1:
        message = f"{scale:g} standard leans to the unconditional prediction: no guidance is 1 there, and 0 as an offset"
        yield ctx.problem(key, message, cure="Use 1, or guidance_convention: offset.", severity="warning")
    if config.cfg_uncond.text == "keep" and scale != 1:
        yield ctx.problem(
            "method_config.cfg_uncond.text",
            "with `keep` the unconditional prediction is the conditional one: the teacher is not guided",
            cure="Use `negative_prompt` or `zero`, or set the guidance scale to none.",
            severity="warning",
        )


def _ladder(ctx: CheckContext, config: DMD2Config) -> Iterator[fvd.Problem]:
    key, steps, shift = "method_config.dmd_denoising_steps", config.trained_steps, ctx.run.pipeline_config.flow_shift
    if len(steps) < len(config.dmd_denoising_steps):
        message = f"the trailing 0 ends the ladder and is not trained on; the student has {len(steps)} steps"
        yield ctx.problem(key, message, severity="note")
    if config.rollout_mode == "simulate" and steps[0] < NEARLY_NOISE:
        message = f"the student is given pure noise, and told that it is at timestep {steps[0]:g} of 1000"
        yield ctx.problem(key, message, cure="Begin the ladder at 1000, unless this is what you want.", severity="note")
    scores = config.score_timestep_shift
    if config.warp_denoising_step and scores not in (None, shift):
        message = (
            f"the scores are compared with a shift of {scores:g}, and the ladder has pipeline_config.flow_shift, {shift:g}"
        )
        yield ctx.problem("method_config.score_timestep_shift", message, severity="note")


def _critic_rate(ctx: CheckContext, config: DMD2Config) -> Iterator[fvd.Problem]:
    """A rate for all roles is the critic's too, which learns best at one of its own."""
    training, critic = ctx.run.training, ctx.run.roles["critic"]
    own = config.role_defaults("critic").optimizer.learning_rate
    rate_is_its_own = critic.optimizer is not None and "learning_rate" in critic.optimizer.model_fields_set
    if "learning_rate" in training.model_fields_set and not rate_is_its_own and own not in (None, training.learning_rate):
        message = f"{training.learning_rate:g} is the critic's rate too, in place of {own:g}"
        cure = "roles.critic.optimizer.learning_rate gives it one of its own."
        yield ctx.problem("training.learning_rate", message, cure=cure, severity="note")


def _exact_r1(ctx: CheckContext, config: DMD2Config) -> Iterator[fvd.Problem]:
    """It keeps the critic's attention as it can be differentiated twice; what is recomputed is fused again."""
    exact = DISCRIMINATOR in ctx.run.roles and config.gan.r1_weight > 0 and config.gan.r1 == "exact"
    if exact and config.gan.feature_source == "critic" and ctx.run.training.enable_gradient_checkpointing_type:
        message = "exact does not go together with recomputed activations of the critic"
        cure = "Use r1: approximate, or remove training.enable_gradient_checkpointing_type."
        yield ctx.problem("method_config.gan.r1", message, cure=cure)


def _pairs(ctx: CheckContext, config: DMD2Config) -> Iterator[fvd.Problem]:
    """The regression needs data with trajectories. What can be told without pyarrow; `fvd run` looks at every row."""
    if config.regression_weight == 0:
        return
    key, student = "method_config.regression_weight", ctx.families["student"]
    if student.dataset_kind != "parquet":
        return
    for folder, _ in ctx.run.training.data_sources():
        file = first_file(folder)
        if file is not None and has_column(file, "trajectory_latents_bytes") is False:
            message = (
                f"regresses on the teacher's ODE solutions, and the data hold none: {file} has no column trajectory_latents"
            )
            cure = "Make them with `fvd data pairs` and name their folder in training.data_path, or set the weight to 0."
            yield ctx.problem(key, message, cure=cure)


def _idle(ctx: CheckContext, config: DMD2Config) -> Iterator[fvd.Problem]:
    """Keys that the run file sets to something, in vain."""
    adversarial = DISCRIMINATOR in ctx.run.roles
    usual = DMD2Config.model_validate({"preset": config.preset, "rollout_mode": config.rollout_mode})
    before, now = flatten(usual.model_dump()), flatten(config.model_dump())
    in_vain = {
        key: reason
        for key, reason in idle_keys(config, ctx.run, adversarial=adversarial).items()
        if now[key] != before[key] and key.partition(".")[0] in config.model_fields_set
    }
    if not adversarial and any(key.startswith("gan.") for key in in_vain):
        message = "has no effect: the adversarial loss is there where the run file names the role discriminator"
        cure = "Add under roles:  discriminator: {}"
        yield ctx.problem("method_config.gan", message, cure=cure, severity="warning")
    for key, reason in in_vain.items():
        if adversarial or not key.startswith("gan."):
            yield ctx.problem(f"method_config.{key}", f"has no effect: {reason}", severity="note")
