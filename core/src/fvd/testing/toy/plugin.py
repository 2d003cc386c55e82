"""The entry point of the toy: a family, its dataset kind, and the smallest method. Light: stdlib and `fvd` only."""

from __future__ import annotations

import fvd

TRAINING = {
    "max_train_steps": 400,
    "train_batch_size": 128,
    "learning_rate": 5e-3,
    "lr_scheduler": "cosine",
    "validation_sampling_steps": 20,
    "validation_guidance_scale": 1.0,
}
"""What a run of a few seconds wants."""


@fvd.hookimpl
def fvd_families() -> list[fvd.FamilySpec]:
    return [
        fvd.FamilySpec(
            name="toy",
            target="fvd.testing.toy.family:ToyFamily",
            config="fvd.testing.toy.config:ToyConfig",
            summary="points of a Gaussian mixture, flow matching; for tests and first tries",
            provides=fvd.TEXT_TO_VIDEO | fvd.FEATURE_PRIMITIVES,
            samplers={"ode", "sde"},
            export_formats=("toy",),
            dataset_kind="toy",
            example=fvd.Example(path="random", frozen_path="analytic", training=TRAINING),
        )
    ]


@fvd.hookimpl
def fvd_dataset_kinds() -> list[fvd.DatasetKindSpec]:
    return [
        fvd.DatasetKindSpec(
            name="toy",
            target="fvd.testing.toy.data:open_points",
            summary="points of a Gaussian mixture with captions, made on the fly",
            reads_folders=False,
        )
    ]


@fvd.hookimpl
def fvd_methods() -> list[fvd.MethodSpec]:
    return [
        fvd.MethodSpec(
            name="toy",
            target="fvd.testing.toy.method:ToyMethod",
            summary="the smallest method: regression on the family's training target; for tests of families",
            roles={"student": fvd.RoleNeeds(trainable=True, needs={"predict"})},
            needs={"prepare_batch", "add_noise", "training_target", "shift_and_clamp_timestep", "num_train_timesteps"},
        )
    ]
