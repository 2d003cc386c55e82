"""Entry point of fvd-dmd2. Light: the standard library and `fvd` only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fvd

if TYPE_CHECKING:
    from fvd.config.check import CheckContext

_SAME_NAME = (
    "min_timestep_ratio",
    "max_timestep_ratio",
    "generator_update_interval",
    "real_score_guidance_scale",
    "warp_denoising_step",
    "dmd_denoising_steps",
)
# Existing files write these under `training:`.
_MOVED_KEYS = {name: fvd.MovedKey(to=name) for name in _SAME_NAME} | {
    # In older programs a rate of 0 (also written 0.0) meant "as the student's".
    "fake_score_learning_rate": fvd.MovedKey(to="roles.critic.optimizer.learning_rate", values={0: None}),
    "fake_score_betas": fvd.MovedKey(to="roles.critic.optimizer.betas"),
    "fake_score_lr_scheduler": fvd.MovedKey(to="roles.critic.optimizer.lr_scheduler"),
    "ema_decay": fvd.MovedKey(to="roles.student.ema.decay"),
    "ema_start_step": fvd.MovedKey(to="roles.student.ema.start_step"),
    "simulate_generator_forward": fvd.MovedKey(to="rollout_mode", values={True: "simulate", False: "data_latent"}),
    "dfake_gen_update_ratio": fvd.MovedKey(to="generator_update_interval"),
}


@fvd.hookimpl
def fvd_methods() -> list[fvd.MethodSpec]:
    return [
        fvd.MethodSpec(
            name="dmd2",
            target="fvd_dmd2.method:DMD2Method",
            summary="distribution matching distillation into a few-step student",
            config="fvd_dmd2.config:DMD2Config",
            roles={
                "student": fvd.RoleNeeds(trainable=True, needs={"predict_x0"}),
                "teacher": fvd.RoleNeeds(trainable=False, needs={"predict_x0"}),
                "critic": fvd.RoleNeeds(trainable=True, needs={"predict", "predict_x0"}),
                "discriminator": fvd.RoleNeeds(
                    trainable=True, needs={"features", "feature_widths"}, optional=True, made_by_method=True
                ),
            },
            needs={
                "prepare_batch",
                "add_noise",
                "training_target",
                "shift_and_clamp_timestep",
                "num_train_timesteps",
                "ensure_negative_conditioning",
                "zero_conditioning",
            },
            moved_keys=_MOVED_KEYS,
            expected_failures={
                "B211": "its example guides the teacher, whose distribution is then not the data's, and the kit begins from "
                "random weights; unguided and from a finetuned network it comes to the data of both toys"
            },
            example=fvd.Example(
                training={"max_train_steps": 4000},
                method_config={
                    "dmd_denoising_steps": [1000, 750, 500, 250],
                    "warp_denoising_step": True,
                    "rollout_mode": "simulate",
                    "generator_update_interval": 5,
                    "real_score_guidance_scale": 4.0,
                    "guidance_convention": "standard",
                },
            ),
        )
    ]


@fvd.hookimpl
def fvd_check_config(ctx: CheckContext) -> list[fvd.Problem]:
    """What a valid run file means, where that is easily misread."""
    from fvd_dmd2.check import check_run_file  # pydantic: only here, where a run file has been parsed

    return list(check_run_file(ctx))
