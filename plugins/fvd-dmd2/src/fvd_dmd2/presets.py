"""What published systems mean where a run file is silent. Data, no code: `fvd_dmd2.config` puts it under what the file says.

A preset sets the conventions of a system so that its losses and gradients come out, and the optimizers of its published video
recipe. What is a defect of a system and no convention is not reproduced: non-finite samples are dropped everywhere, σ(t) is
t / 1000 and no nearest entry of a table, and random numbers are fvd's own. The docs have the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LADDER_TIMESTEPS = 1000
"""Unit of ``dmd_denoising_steps``, here as in run files: 1000 is pure noise."""

PresetName = Literal["dmd2", "causvid", "self_forcing", "fastgen", "fastvideo"]


@dataclass(frozen=True)
class Preset:
    """method_config: keys of `fvd_dmd2.config.DMD2Config`. roles: optimizer and ema of a role, as under ``roles:``."""

    system: str
    method_config: Mapping[str, object]
    roles: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def _both(
    student: Mapping[str, object], critic: Mapping[str, object] | None = None, *, ema: Mapping[str, object] | None = None
) -> dict[str, Mapping[str, object]]:
    """The critic's optimizer is the student's but for what is said, and the discriminator's is the critic's; ``ema`` is the
    student's."""
    observer = {"optimizer": {**student, **(critic or {})}}
    return {"student": {"optimizer": student, "ema": ema}, "critic": observer, "discriminator": observer}


BEST_PRACTICE_ROLES: Mapping[str, Mapping[str, object]] = {
    "student": {
        "optimizer": {"learning_rate": 2e-6, "betas": (0.0, 0.999), "max_grad_norm": 10.0},
        "ema": {"decay": 0.99, "start_step": 40},
    },
    "critic": {"optimizer": {"learning_rate": 4e-7, "betas": (0.0, 0.999), "max_grad_norm": 10.0}},
    "discriminator": {"optimizer": {"learning_rate": 2e-6, "betas": (0.0, 0.999), "max_grad_norm": 10.0}},
}
"""Where neither file nor preset says anything: Self-Forcing's rates, with the average on the student's own clock."""

_DECAY = 0.01
"""Weight decay of all five."""

_SHARED: Mapping[str, object] = {
    "rollout_mode": "simulate",
    "between_steps": "sde",
    "step_choice": "batch",
    "early_exit": True,
    "reuse_rollout": True,
    "generator_update_interval": 5,
    "update_mode": "joint",
    "separate_graphs": True,
    "cfg_uncond": {"text": "negative_prompt"},
    "skip_unused_uncond": True,
    "batch_guidance": True,
    "min_timestep_ratio": 0.02,
    "max_timestep_ratio": 0.98,
    "score_timestep_draw": "continuous",
    "score_timestep_range": "inside",
    "score_timestep_shift": None,
    "score_timestep_choice": "sample",
    "normalizer": "sample",
    "normalizer_guard": "none",
    "critic_target": "native",
    "critic_timestep_range": "full",
}
"""What most of them have in common. Said in each preset, so that a preset stays what it is when a default of fvd changes."""

_INTEGERS_THEN_CLAMP = {
    "score_timestep_draw": "integer",
    "score_timestep_range": "clamp",
    "critic_timestep_range": "score",
}

PRESETS: Mapping[str, Preset] = {
    "dmd2": Preset(
        system="the official implementation of DMD2, SDXL in 4 steps",
        method_config={
            **_SHARED,
            "dmd_denoising_steps": (999, 749, 499, 249),
            "warp_denoising_step": False,
            "real_score_guidance_scale": 8.0,
            "guidance_convention": "standard",
            "cfg_uncond": {"text": "zero"},
            "score_timestep_draw": "integer",
            "score_timestep_shift": 1.0,
            "gan": {
                "weight_generator": 5e-3,
                "weight_discriminator": 1e-2,
                "feature_source": "critic",
                "train_feature_source": True,
                "timestep": "uniform",
                "real_timestep": "own",
            },
        },
        roles=_both({"learning_rate": 5e-7, "betas": (0.9, 0.999), "weight_decay": _DECAY, "max_grad_norm": 10.0}),
    ),
    "causvid": Preset(
        system="CausVid, bidirectional student in 3 steps",
        method_config={
            **_SHARED,
            "dmd_denoising_steps": (1000, 757, 522),
            "warp_denoising_step": False,
            "early_exit": False,
            "step_choice": "sample",
            "reuse_rollout": False,
            "real_score_guidance_scale": 3.5,
            "guidance_convention": "offset",
            "skip_unused_uncond": False,
            "batch_guidance": False,
            "score_timestep_shift": 8.0,
            **_INTEGERS_THEN_CLAMP,
        },
        roles=_both({"learning_rate": 2e-6, "betas": (0.9, 0.999), "weight_decay": _DECAY, "max_grad_norm": 10.0}),
    ),
    "self_forcing": Preset(
        system="Self-Forcing",
        method_config={
            **_SHARED,
            "dmd_denoising_steps": (1000, 750, 500, 250),
            "warp_denoising_step": True,
            "reuse_rollout": False,
            "real_score_guidance_scale": 3.0,
            "guidance_convention": "offset",
            "skip_unused_uncond": False,
            "batch_guidance": False,
            "score_timestep_shift": 5.0,
            **_INTEGERS_THEN_CLAMP,
        },
        roles=_both(
            {"learning_rate": 2e-6, "betas": (0.0, 0.999), "weight_decay": _DECAY, "max_grad_norm": 10.0},
            {"learning_rate": 4e-7},
            ema={"decay": 0.99, "start_step": 40},
        ),
    ),
    "fastgen": Preset(
        system="FastGen, Wan in 4 steps",
        method_config={
            **_SHARED,
            "dmd_denoising_steps": (999, 937, 833, 624),
            "warp_denoising_step": False,
            "rollout_mode": "data_latent",
            "step_choice": "sample",
            "between_steps": "ode",
            "update_mode": "either_or",
            "real_score_guidance_scale": 5.0,
            "guidance_convention": "standard",
            "batch_guidance": False,
            "normalizer_guard": "add",
            "normalizer_epsilon": 1e-6,
            "score_timestep_shift": 5.0,
            "score_timestep_range": "before_shift",
            "min_timestep_ratio": 0.001,
            "max_timestep_ratio": 0.999,
            "critic_timestep_range": "score",
            "critic_target": "x0",
            "gan": {"weight_generator": 0.03, "weight_discriminator": 1.0, "feature_source": "teacher", "timestep": "shared"},
        },
        roles=_both(
            {"learning_rate": 1e-5, "betas": (0.9, 0.999), "weight_decay": _DECAY, "max_grad_norm": 10.0},
            {"max_grad_norm": 0.0},
        ),
    ),
    "fastvideo": Preset(
        system="FastVideo's modular trainer",
        method_config={
            **_SHARED,
            "dmd_denoising_steps": (1000, 750, 500, 250),
            "warp_denoising_step": False,
            "early_exit": False,
            "reuse_rollout": False,
            "separate_graphs": False,
            "guidance_convention": "standard",
            "real_score_guidance_scale": 4.5,
            "skip_unused_uncond": False,
            "batch_guidance": False,
            "normalizer": "batch",
            "score_timestep_choice": "batch",
            "min_timestep_ratio": 0.0,
            "max_timestep_ratio": 1.0,
            **_INTEGERS_THEN_CLAMP,
        },
        # Its average has decay 0.98 at every step, of which the student moves at one in five.
        roles=_both(
            {"learning_rate": 2e-6, "betas": (0.0, 0.999), "weight_decay": _DECAY, "max_grad_norm": 1.0},
            {"learning_rate": 8e-6},
            ema={"decay": 0.98**5, "start_step": 0},
        ),
    ),
}
