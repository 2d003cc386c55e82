"""Which keys of ``method_config:`` do nothing in a run, whatever their value, and why. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import fvd
    from fvd_dmd2.config import DMD2Config
    from fvd_dmd2.gan_config import GanConfig


def idle_keys(config: DMD2Config, run: fvd.RunConfig, *, adversarial: bool) -> Mapping[str, str]:
    """Key -> why it has no effect. adversarial: whether the run has a discriminator."""
    return {
        **_in_the_rollout(config, run),
        **_in_the_updates(config, adversarial=adversarial),
        **_in_the_guidance(config),
        **_in_the_scores(config, run),
        **{f"gan.{key}": reason for key, reason in _in_the_gan(config.gan, adversarial=adversarial).items()},
    }


def _in_the_rollout(config: DMD2Config, run: fvd.RunConfig) -> dict[str, str]:
    idle: dict[str, str] = {}
    if config.rollout_mode == "data_latent":
        idle["early_exit"] = "with data_latent there are no steps to leave out"
    if len(config.trained_steps) == 1:
        idle |= dict.fromkeys(("early_exit", "between_steps", "step_choice"), "the ladder has one step")
    if run.pipeline_config.flow_shift == 1:
        idle["warp_denoising_step"] = "pipeline_config.flow_shift is 1"
    elif config.trained_steps == (1000,):
        idle["warp_denoising_step"] = "the shift leaves 1000 where it is"
    return idle


def _in_the_updates(config: DMD2Config, *, adversarial: bool) -> dict[str, str]:
    if config.update_mode == "joint":
        return {}
    idle = {"reuse_rollout": "with either_or no step trains student and critic both"}
    if not adversarial and not config.regression_weight:
        idle["separate_graphs"] = "with either_or a step has one loss"
    return idle


def _in_the_guidance(config: DMD2Config) -> dict[str, str]:
    idle: dict[str, str] = {}
    if config.real_score_guidance_scale is None:
        idle["guidance_convention"] = "no scale is given, and the default is the same in both"
    if config.standard_guidance_scale == 1:
        idle["cfg_uncond.text"] = "the teacher is not guided"
    elif config.cfg_uncond.text == "keep":
        idle["real_score_guidance_scale"] = "with cfg_uncond.text: keep the teacher is not guided"
    if config.teacher_is_guided:
        idle["skip_unused_uncond"] = "the guidance uses the unconditional forward"
    if not config.needs_uncond:
        idle["batch_guidance"] = "the teacher makes no unconditional forward"
    named = {"image": config.cfg_uncond.image, "action": config.cfg_uncond.action}
    idle |= {f"cfg_uncond.{channel}": f"no family has {channel} conditioning yet" for channel in named}
    if not any(named.values()):
        idle["cfg_uncond.on_missing"] = "no channel is named that families lack"
    return idle


def _in_the_scores(config: DMD2Config, run: fvd.RunConfig) -> dict[str, str]:
    idle: dict[str, str] = {}
    if (config.min_timestep_ratio, config.max_timestep_ratio) == (0, 1):
        idle |= dict.fromkeys(("score_timestep_range", "critic_timestep_range"), "the range is the whole schedule")
    if config.normalizer == "batch" and run.training.train_batch_size == 1:
        idle["normalizer"] = "a micro-batch is one sample, so that batch is the same as sample"
    if config.normalizer_guard == "none":
        idle["normalizer_epsilon"] = "with normalizer_guard: none nothing is added"
    return idle


def _in_the_gan(gan: GanConfig, *, adversarial: bool) -> dict[str, str]:
    if not adversarial:
        return dict.fromkeys(type(gan).model_fields, "the run file names no role discriminator")
    idle: dict[str, str] = {}
    if gan.feature_source == "teacher":
        idle["train_feature_source"] = "the teacher is frozen"
    if gan.timestep == "clean":
        idle["real_timestep"] = "nothing is noised"
    if gan.r1_weight == 0:
        idle |= dict.fromkeys(("r1", "r1_alpha"), "r1_weight is 0")
    elif gan.r1 == "exact":
        idle["r1_alpha"] = "with r1: exact nothing is perturbed"
    return idle
