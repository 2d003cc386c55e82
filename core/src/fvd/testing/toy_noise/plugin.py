"""The entry point of the toy that predicts noise. Light: stdlib and `fvd` only."""

from __future__ import annotations

import fvd
from fvd.testing.toy.plugin import TRAINING


@fvd.hookimpl
def fvd_families() -> list[fvd.FamilySpec]:
    return [
        fvd.FamilySpec(
            name="toy_noise",
            target="fvd.testing.toy_noise.family:ToyNoiseFamily",
            config="fvd.testing.toy.config:ToyConfig",
            summary="points of a Gaussian mixture, a DDPM schedule, noise prediction; for tests of methods",
            provides=fvd.TEXT_TO_VIDEO | fvd.FEATURE_PRIMITIVES,
            samplers={"ode", "sde"},
            export_formats=("toy",),
            dataset_kind="toy_noise",
            example=fvd.Example(path="random", frozen_path="analytic", training=TRAINING),
        )
    ]


@fvd.hookimpl
def fvd_dataset_kinds() -> list[fvd.DatasetKindSpec]:
    return [
        fvd.DatasetKindSpec(
            name="toy_noise",
            target="fvd.testing.toy.data:open_points",
            summary="points of a Gaussian mixture with captions, made on the fly",
            reads_folders=False,
        )
    ]
