"""Entry point of fvd-finetune. Light: the standard library and `fvd` only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fvd

if TYPE_CHECKING:
    from fvd.config.check import CheckContext

# Existing files write these under `training:`; an explicit 0 stays 0.
_MOVED_KEYS = {
    "weighting_scheme": fvd.MovedKey(to="timestep_density", values={"none": "uniform"}),
    "logit_mean": fvd.MovedKey(to="logit_mean"),
    "logit_std": fvd.MovedKey(to="logit_std"),
    "mode_scale": fvd.MovedKey(to="mode_scale"),
}


@fvd.hookimpl
def fvd_methods() -> list[fvd.MethodSpec]:
    return [
        fvd.MethodSpec(
            name="finetune",
            target="fvd_finetune.method:FinetuneMethod",
            summary="supervised finetuning on videos (flow matching, or what the family's network predicts)",
            config="fvd_finetune.config:FinetuneConfig",
            roles={"student": fvd.RoleNeeds(trainable=True, needs={"predict"})},
            needs={"prepare_batch", "add_noise", "training_target", "shift_and_clamp_timestep", "num_train_timesteps"},
            moved_keys=_MOVED_KEYS,
            held_out_loss=True,
            example=fvd.Example(
                training={
                    "max_train_steps": 4000,
                    "training_cfg_rate": 0.1,
                    "learning_rate": 1e-5,
                    "lr_scheduler": "constant_with_warmup",
                    "lr_warmup_steps": 100,
                },
                method_config={"timestep_density": "logit_normal"},
            ),
        )
    ]


@fvd.hookimpl
def fvd_check_config(ctx: CheckContext) -> list[fvd.Problem]:
    from fvd_finetune.config import FinetuneConfig  # pydantic: only here, where a run file has been parsed

    config = ctx.run.method_config
    if not isinstance(config, FinetuneConfig):  # another method, of whatever name
        return []
    return ctx.check_attn_kind("student", config.attn_kind)
