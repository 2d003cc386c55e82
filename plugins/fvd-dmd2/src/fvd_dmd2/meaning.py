"""What each key of ``method_config:`` means in a run, in a sentence. No torch here.

x is the student's sample, R the teacher's x0 (R_c conditional, R_u unconditional), F the critic's, D the discriminator. What a
shift makes of a timestep is said for flow matching; on other schedules the numbers differ a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fvd.config.changes import flatten
from fvd_dmd2.idle import idle_keys
from fvd_dmd2.presets import LADDER_TIMESTEPS, PRESETS

if TYPE_CHECKING:
    import fvd
    from fvd_dmd2.config import DMD2Config
    from fvd_dmd2.gan_config import GanConfig

FLOW = "(flow matching)"


# --- what core asks ---
def sources(config: DMD2Config) -> Mapping[str, str]:
    """`fvd.MethodConfig.sources`."""
    found = {}
    if config.rollout_mode == "data_latent":
        found["step_choice"] = "default of data_latent"
    if config.warp_denoising_step:
        found["warp_denoising_step"] = "default where no ladder is given"
    if config.preset is not None:
        preset, values = PRESETS[config.preset], flatten(config.model_dump())
        # What the run file says of a section may have replaced the preset's.
        said = [key for key, value in flatten(preset.method_config).items() if values.get(key) == value]
        found |= dict.fromkeys([*said, *(f"roles.{role}" for role in preset.roles)], f"preset {config.preset}")
    return found


def headlines(config: DMD2Config, run: fvd.RunConfig, *, adversarial: bool) -> Mapping[str, str]:
    """`fvd.MethodConfig.headlines`. adversarial: whether the run has a discriminator."""
    observers = "critic and discriminator" if adversarial else "critic"
    when = "every step" if config.update_mode == "joint" else "all other steps"
    lines = {"updates": f"student at {_every(config.generator_update_interval)}, {observers} at {when}"}
    if config.warp_denoising_step and run.pipeline_config.flow_shift != 1:
        lines["ladder"] = f"{_shifted_ladder(config, run)} after the flow shift {FLOW}"
    scale = f"guided by {config.standard_guidance_scale:g} in the standard convention, where 1 is none"
    lines["teacher"] = scale if config.teacher_is_guided else "not guided"
    if adversarial:
        lines["gan"] = f"on hidden states of the {config.gan.feature_source}"
    if config.regression_weight:
        lines["regression"] = "on the teacher's ODE solutions in the data"
    return lines


def meanings(config: DMD2Config, run: fvd.RunConfig, *, adversarial: bool) -> Mapping[str, str]:
    """`fvd.MethodConfig.meanings`, for every key. adversarial: whether the run has a discriminator."""
    silent = "where the run file says nothing"
    said = {
        "preset": f"{PRESETS[config.preset].system}, {silent}" if config.preset else f"best practice {silent}",
        **_rollout(config, run),
        **_updates(config, run),
        **_guidance(config, run),
        **_scores(config, run),
        **_gradient(config, run),
        "regression_weight": f"student: + {config.regression_weight:g} mean (x0(x_t) - x0)^2 on ODE solutions of the teacher"
        if config.regression_weight
        else "no regression on ODE solutions of the teacher",
        **{f"gan.{key}": sentence for key, sentence in _adversarial(config.gan).items()},
        "attn_kind": {"dense": "all tokens see each other", "vsa": "sparse, where the family of the student has it"}[
            config.attn_kind
        ],
    }
    idle = idle_keys(config, run, adversarial=adversarial)
    return said | {key: f"no effect: {reason}" for key, reason in idle.items()}


# --- key by key ---
def _rollout(config: DMD2Config, run: fvd.RunConfig) -> dict[str, str]:
    steps, shift = _count(len(config.trained_steps), "step"), run.pipeline_config.flow_shift
    shifted = f", {_shifted_ladder(config, run)} after the shift {FLOW}" if config.warp_denoising_step and shift != 1 else ""
    has_end = len(config.trained_steps) < len(config.dmd_denoising_steps)
    between = {
        "sde": "x0 is noised afresh for the next step; sampled by sde",
        "ode": "x0 keeps the noise that it was predicted from; sampled by ddim",
    }[config.between_steps]
    return {
        "dmd_denoising_steps": f"{steps}{shifted}{'; the trailing 0 ends it and is not trained on' if has_end else ''}",
        "warp_denoising_step": f"t' = {_law(shift)} {FLOW}" if config.warp_denoising_step else "the ladder is taken as written",
        "rollout_mode": {
            "simulate": "x_t comes from the student's own steps from pure noise, without gradient",
            "data_latent": "x_t is a noised sample of the data: one forward, no steps before it",
        }[config.rollout_mode],
        "between_steps": between if config.rollout_mode == "simulate" else f"in sampling alone: {between}",
        "step_choice": {
            "batch": f"one of the {steps} for all samples and ranks",
            "sample": f"each sample its own of the {steps}",
        }[config.step_choice],
        "early_exit": "a rollout ends at the step that is trained on, the last one of its samples"
        if config.early_exit
        else "a rollout goes down the whole ladder, whichever step is trained on",
        "reuse_rollout": "the critic learns on the samples of the student's loss, detached"
        if config.reuse_rollout
        else "where both are trained, the critic gets a rollout of its own",
    }


def _updates(config: DMD2Config, run: fvd.RunConfig) -> dict[str, str]:
    interval = config.generator_update_interval
    student = _count(run.training.max_train_steps // interval, "update")
    critic = _count(interval if config.update_mode == "joint" else interval - 1, "critic update")
    return {
        "generator_update_interval": f"the student moves at {_every(interval)}, counted from 1: {student} in this run",
        "update_mode": {
            "joint": f"the critic moves at every step: {critic} per student update",
            "either_or": f"the critic moves where the student does not: {critic} per student update",
        }[config.update_mode],
        "separate_graphs": "the graph of one loss is gone before the next one's is built"
        if config.separate_graphs
        else "the graphs of a step's losses are in memory at once",
    }


def _guidance(config: DMD2Config, run: fvd.RunConfig) -> dict[str, str]:
    scale, given = config.standard_guidance_scale, config.real_score_guidance_scale
    same = f"{given:g} offset = {scale:g} standard: " if given is not None and config.guidance_convention == "offset" else ""
    formula = "R = R_c, no guidance" if scale == 1 else f"R = R_u + {scale:g} (R_c - R_u)"
    prompt = "pipeline_config.negative_prompt" + ("" if run.pipeline_config.negative_prompt else ", which is empty")
    return {
        "real_score_guidance_scale": f"{same}{'default: ' if given is None else ''}{formula}",
        "guidance_convention": {
            "offset": "the scale is w in R = R_c + w (R_c - R_u), 0 is none",
            "standard": "the scale is s in R = R_u + s (R_c - R_u), 1 is none",
        }[config.guidance_convention],
        "cfg_uncond.text": {
            "negative_prompt": f"R_u is told {prompt}",
            "zero": "R_u is told embeddings of zeros",
            "keep": "R_u is told the sample's own text, so that R = R_c: no guidance",
        }[config.cfg_uncond.text],
        "cfg_uncond.image": "",
        "cfg_uncond.action": "",
        "cfg_uncond.on_missing": {
            "error": "a channel that no family has is refused",
            "ignore": "a channel that no family has is left aside",
        }[config.cfg_uncond.on_missing],
        "skip_unused_uncond": "the teacher makes one forward, not two"
        if config.skip_unused_uncond
        else "the teacher makes two forwards, and one is for nothing",
        "batch_guidance": "R_c and R_u in one forward of twice the samples, where memory allows"
        if config.batch_guidance
        else "R_c and R_u in two forwards",
    }


def _scores(config: DMD2Config, run: fvd.RunConfig) -> dict[str, str]:
    shift = run.pipeline_config.flow_shift if config.score_timestep_shift is None else config.score_timestep_shift
    low, high = LADDER_TIMESTEPS * config.min_timestep_ratio, LADDER_TIMESTEPS * config.max_timestep_ratio
    numbers = {"continuous": "real numbers", "integer": "whole numbers"}[config.score_timestep_draw]
    first, last = _drawn_between(config, shift)
    before = "" if shift == 1 else f" before the shift by {shift:g} {FLOW}"
    of_run = "pipeline_config.flow_shift: " if config.score_timestep_shift is None else ""
    clamped = f"clamped to [{low:g}, {high:g}]{_piled_up(config, shift)}"
    return {
        "min_timestep_ratio": f"scores are compared at t >= {low:g}",
        "max_timestep_ratio": f"scores are compared at t <= {high:g}",
        "score_timestep_draw": f"{numbers}, uniform in [{_short(first)}, {_short(last)}]{before}",
        "score_timestep_range": {
            "inside": f"inside [{low:g}, {high:g}] after the shift, with no mass at the ends",
            "clamp": f"over the whole schedule, then {clamped}",
            "before_shift": f"inside [{low:g}, {high:g}] before the shift, then {clamped}",
        }[config.score_timestep_range],
        "score_timestep_shift": of_run + ("no shift" if shift == 1 else f"t' = {_law(shift)} {FLOW}"),
        "score_timestep_choice": {"sample": "each sample its own", "batch": "one for all samples of a step"}[
            config.score_timestep_choice
        ],
        "critic_timestep_range": {
            "full": f"t in [0, {LADDER_TIMESTEPS}], with the draw and the shift of the scores",
            "score": f"t in [{low:g}, {high:g}], drawn as the scores'",
        }[config.critic_timestep_range],
    }


def _gradient(config: DMD2Config, run: fvd.RunConfig) -> dict[str, str]:
    epsilon = f"{config.normalizer_epsilon:g}"
    guarded = {"floor": f"max(w, {epsilon})", "add": f"(w + {epsilon})", "none": "w"}[config.normalizer_guard]
    over = {
        "sample": "each sample",
        "frame": "each latent frame of each sample",
        "batch": f"the {_count(run.training.train_batch_size, 'sample')} of a micro-batch",
    }[config.normalizer]
    return {
        "normalizer": f"w = mean |x - R| over {over}",
        "normalizer_guard": f"g = (F - R) / {guarded}; non-finite samples are dropped",
        "normalizer_epsilon": f"in {guarded}",
        "critic_target": {
            "native": "mean (output - target)^2 of what the network predicts; for flow matching noise - x0",
            "x0": "mean (F - x)^2; for flow matching sigma^2 times the native error",
        }[config.critic_target],
    }


def _adversarial(gan: GanConfig) -> dict[str, str]:
    layers = "three, over the second half of the blocks" if gan.layers is None else f"after {_count(len(gan.layers), 'block')}"
    return {
        "weight_generator": f"student: + {gan.weight_generator:g} mean softplus(-D(x))"
        if gan.weight_generator
        else "the student does not see the discriminator, which is trained alone",
        "weight_discriminator": f"{gan.weight_discriminator:g} (mean softplus(D(x)) + mean softplus(-D(data)))",
        "feature_source": {
            "teacher": "heads on hidden states of the teacher, which stays frozen",
            "critic": "heads on hidden states of the critic",
        }[gan.feature_source],
        "train_feature_source": "the discriminator's loss trains the critic too"
        if gan.train_feature_source
        else "the discriminator's loss trains the heads alone",
        "layers": layers,
        "timestep": {
            "shared": "the x_t, timestep and noise of the matching gradient, and of the critic's loss",
            "score": "a draw of its own, distributed as the scores'",
            "uniform": f"a draw of its own, uniform in [0, {LADDER_TIMESTEPS}]",
            "clean": "samples and data as they are, at timestep 0",
        }[gan.timestep],
        "real_timestep": {
            "same": "timestep and noise of the student's sample",
            "own": "a draw of their own",
        }[gan.real_timestep],
        "r1_weight": f"discriminator: + {gan.r1_weight:g} R1" if gan.r1_weight else "no penalty",
        "r1": {
            "approximate": "R1 = mean (D(data) - D(data + alpha z))^2",
            "exact": "R1 = mean |gradient of D at the data|^2",
        }[gan.r1],
        "r1_alpha": f"alpha = {gan.r1_alpha:g}",
    }


# --- numbers ---
def _shifted(t: float, shift: float) -> float:
    """t' = s t / (1 + (s - 1) t / N) (Esser et al. 2024, eq. 23). Its inverse is the shift by 1 / s."""
    return shift * t / (1 + (shift - 1) * t / LADDER_TIMESTEPS)


def _shifted_ladder(config: DMD2Config, run: fvd.RunConfig) -> str:
    return ", ".join(_short(_shifted(step, run.pipeline_config.flow_shift)) for step in config.trained_steps)


def _law(shift: float) -> str:
    return f"{shift:g} t / (1 {'-' if shift < 1 else '+'} {abs(shift - 1):g} t / {LADDER_TIMESTEPS})"


def _drawn_between(config: DMD2Config, shift: float) -> tuple[float, float]:
    """Before the shift."""
    low, high = LADDER_TIMESTEPS * config.min_timestep_ratio, LADDER_TIMESTEPS * config.max_timestep_ratio
    highest = float(LADDER_TIMESTEPS - 1 if config.score_timestep_draw == "integer" else LADDER_TIMESTEPS)
    match config.score_timestep_range:
        case "inside":
            return _shifted(low, 1 / shift), min(highest, _shifted(high, 1 / shift))
        case "before_shift":
            return low, min(highest, high)
        case "clamp":
            return 0.0, highest


def _piled_up(config: DMD2Config, shift: float) -> str:
    """What the clamp puts on the ends of the range, as shares of the draws."""
    first, last = _drawn_between(config, shift)
    ends = {LADDER_TIMESTEPS * config.max_timestep_ratio: 1.0, LADDER_TIMESTEPS * config.min_timestep_ratio: -1.0}
    shares = {}
    for end, side in ends.items():
        beyond = side * ((last if side > 0 else first) - _shifted(end, 1 / shift)) / (last - first)
        shares[end] = round(100 * beyond, 1)
    listed = [f"{share:g} % of the draws at {end:g}" for end, share in shares.items() if share > 0]
    return f": {', '.join(listed)} {FLOW}" if listed else ""


def _short(number: float) -> str:
    return f"{round(number, 1):g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _every(interval: int) -> str:
    """``every 5th step``."""
    if interval == 1:
        return "every step"
    ending = "th" if interval % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(interval % 10, "th")
    return f"every {interval}{ending} step"
