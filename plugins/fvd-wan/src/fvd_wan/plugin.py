"""The entry point of fvd-wan: descriptors and a check of run files. Light: the standard library and `fvd` only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fvd

if TYPE_CHECKING:
    from fvd.config.check import CheckContext

PROVIDES = {
    "prepare_batch",
    "ensure_negative_conditioning",
    "negative_conditioning",
    "encode_prompts",
    "zero_conditioning",
    "num_train_timesteps",
    "add_noise",
    "shift_and_clamp_timestep",
    "scheduler",
    "predict",
    "training_target",
    "predict_x0",
    "predict_noise",
    "decode",
    "latent_shape",
}


@fvd.hookimpl
def fvd_families() -> list[fvd.FamilySpec]:
    return [
        fvd.FamilySpec(
            name="wan",
            target="fvd_wan.family:WanFamily",
            config="fvd_wan.config:WanConfig",
            summary="Wan 2.1 text-to-video, diffusers format (also two-expert checkpoints)",
            provides=PROVIDES,
            samplers={"ode", "sde"},
            latent_space="wan2.1",
        )
    ]


@fvd.hookimpl
def fvd_commands() -> list[fvd.CommandSpec]:
    return [
        fvd.CommandSpec(name="wan", target="fvd_wan.cli:configure", summary="Wan tools: `fvd wan tiny OUT` makes a tiny model")
    ]


@fvd.hookimpl
def fvd_check_config(ctx: CheckContext) -> list[fvd.Problem]:
    from fvd_wan.check import check_run_file

    return check_run_file(ctx)
