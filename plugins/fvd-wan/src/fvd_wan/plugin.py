"""The entry point of fvd-wan: descriptors and a check of run files. Light: the standard library and `fvd` only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fvd
from fvd.specs import PRIMITIVES

if TYPE_CHECKING:
    from fvd.config.check import CheckContext

FAMILY = "wan"


@fvd.hookimpl
def fvd_families() -> list[fvd.FamilySpec]:
    return [
        fvd.FamilySpec(
            name=FAMILY,
            target="fvd_wan.family:WanFamily",
            config="fvd_wan.config:WanConfig",
            summary="Wan 2.1 text-to-video, diffusers format (also two-expert checkpoints)",
            provides=frozenset(PRIMITIVES),
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
