"""The hooks: what a plugin may tell core, and what core tells plugins.

The first group collects descriptors: no arguments, a list back, called once when plugins are loaded. The second group
notifies: one context object each, so that signatures never change. Operations on tensors are never hooks; they are
typed methods of the objects that the descriptors name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fvd.config.check import CheckContext
    from fvd.errors import Problem
    from fvd.events import CheckpointEvent, RunOutcome, StepEvent, ValidationEvent
    from fvd.runtime import Runtime
    from fvd.specs import (
        CommandSpec,
        DatasetKindSpec,
        FamilySpec,
        MethodSpec,
        SamplerSpec,
        TrackerSpec,
        ValidatorSpec,
    )

PROJECT = "fvd"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- descriptors -----------------------------------------------------------------------------------------------------
@hookspec
def fvd_families() -> Sequence[FamilySpec]:
    """Kinds of models that this plugin can load."""
    return []


@hookspec
def fvd_methods() -> Sequence[MethodSpec]:
    """Training algorithms."""
    return []


@hookspec
def fvd_samplers() -> Sequence[SamplerSpec]:
    """Denoising loops."""
    return []


@hookspec
def fvd_validators() -> Sequence[ValidatorSpec]:
    """Ways to sample and log during training."""
    return []


@hookspec
def fvd_dataset_kinds() -> Sequence[DatasetKindSpec]:
    """Formats of prepared data."""
    return []


@hookspec
def fvd_trackers() -> Sequence[TrackerSpec]:
    """Places where metrics and media go."""
    return []


@hookspec
def fvd_commands() -> Sequence[CommandSpec]:
    """Subcommands of `fvd`."""
    return []


# --- checks and notifications ----------------------------------------------------------------------------------------
@hookspec
def fvd_check_config(ctx: CheckContext) -> Sequence[Problem]:
    """Findings about a parsed run file that this plugin can see without torch. Called by `fvd check` and `fvd run`."""
    return []


@hookspec
def fvd_run_start(run: Runtime) -> None:
    """Everything is built and restored; the first step comes next."""


@hookspec
def fvd_step_end(run: Runtime, step: StepEvent) -> None:
    """An optimizer step has been made and its metrics are on the host."""


@hookspec
def fvd_validation_end(run: Runtime, event: ValidationEvent) -> None:
    """Videos have been sampled and written."""


@hookspec
def fvd_checkpoint_saved(run: Runtime, event: CheckpointEvent) -> None:
    """A checkpoint is whole and in its place."""


@hookspec
def fvd_run_end(run: Runtime, outcome: RunOutcome) -> None:
    """The run has ended: finished, stopped by a signal, or failed."""
