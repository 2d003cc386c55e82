"""Core's own samplers, validator, trackers and dataset kinds, registered through the same hooks as anybody's."""

from __future__ import annotations

import fvd


@fvd.hookimpl
def fvd_samplers() -> list[fvd.SamplerSpec]:
    return [
        fvd.SamplerSpec(name="ode", target="fvd.samplers.ode:sample_ode", summary="the scheduler's own step", scheduler="ode"),
        fvd.SamplerSpec(
            name="sde",
            target="fvd.samplers.sde:sample_sde",
            summary="predict x0, re-noise; for few-step students",
            scheduler="sde",
            takes_timesteps=True,
            few_step=True,
        ),
        fvd.SamplerSpec(
            name="ddim",
            target="fvd.samplers.ddim:sample_ddim",
            summary="predict x0 and noise, go to the next timestep; deterministic",
            scheduler="ode",
            takes_timesteps=True,
        ),
    ]


@fvd.hookimpl
def fvd_validators() -> list[fvd.ValidatorSpec]:
    return [
        fvd.ValidatorSpec(
            name="video", target="fvd.validation.video:VideoValidator", summary="samples prompts and writes mp4 files"
        )
    ]


@fvd.hookimpl
def fvd_dataset_kinds() -> list[fvd.DatasetKindSpec]:
    return [
        fvd.DatasetKindSpec(
            name="parquet", target="fvd.data.parquet:open_parquet", summary="prepared latents and text embeddings"
        )
    ]


@fvd.hookimpl
def fvd_trackers() -> list[fvd.TrackerSpec]:
    return [
        fvd.TrackerSpec(
            name="wandb", target="fvd.trackers.wandb:build_wandb", summary="Weights & Biases, offline without a key"
        ),
        fvd.TrackerSpec(
            name="tensorboard", target="fvd.trackers.tensorboard:build_tensorboard", summary="TensorBoard event files"
        ),
    ]
