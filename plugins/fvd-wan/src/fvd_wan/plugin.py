"""The entry point of fvd-wan: descriptors and a check of run files. Light: the standard library and `fvd` only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fvd

if TYPE_CHECKING:
    from fvd.config.check import CheckContext


@fvd.hookimpl
def fvd_families() -> list[fvd.FamilySpec]:
    return [
        fvd.FamilySpec(
            name="wan",
            target="fvd_wan.family:WanFamily",
            config="fvd_wan.config:WanConfig",
            summary="Wan 2.1 text-to-video, diffusers format (also two-expert checkpoints)",
            provides=fvd.TEXT_TO_VIDEO | fvd.FEATURE_PRIMITIVES,
            samplers={"ode", "sde"},
            latent_space="wan2.1",
            tiny="fvd_wan.tiny:make_tiny_wan",
            example=fvd.Example(
                path="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
                frozen_path="Wan-AI/Wan2.1-T2V-14B-Diffusers",
                training={
                    "num_frames": 81,
                    "num_height": 480,
                    "num_width": 832,
                    "gradient_accumulation_steps": 8,
                    "enable_gradient_checkpointing_type": "full",
                },
            ),
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
