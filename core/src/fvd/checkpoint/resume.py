"""Whether a run continues, starts, or is refused: decided before any weights are loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fvd.checkpoint.manager import Checkpoint, CheckpointManager, read_checkpoint
from fvd.config.changes import changed_keys
from fvd.config.models import RunConfig
from fvd.config.optimization import IN_TRAINING
from fvd.errors import CheckpointError
from fvd.rundir import RunDirectory, with_absolute_paths


def find_resume_point(config: RunConfig, resume: str, run_dir: RunDirectory, manager: CheckpointManager) -> Checkpoint | None:
    """The checkpoint to continue from, or None to start at step 0.

    resume: ``auto`` (continue what is in the output directory, else start), ``never``, or a checkpoint's path. Raises
    CheckpointError when the output directory is another run's, with a list of what differs.
    """
    run_dir.refuse_foreign()
    if resume == "never":
        if manager.steps():
            raise CheckpointError(
                f"{run_dir.path} already holds a run, at step {manager.steps()[-1]}, and --resume never would overwrite it",
                cure="Name a new training.output_dir, or delete the old run yourself.",
            )
        _refuse_overwriting_steps(config, run_dir)
        return None
    if resume == "auto":
        checkpoint = manager.latest()
    else:
        checkpoint = read_checkpoint(Path(resume).expanduser())
        _refuse_overwriting(checkpoint, run_dir, manager)
    if checkpoint is None:
        _refuse_overwriting_steps(config, run_dir)
    else:
        _refuse_changes(checkpoint.config, config, f"{checkpoint.path.parent.parent} (step {checkpoint.step})")
    return checkpoint


def _refuse_overwriting(checkpoint: Checkpoint, run_dir: RunDirectory, manager: CheckpointManager) -> None:
    """Continuing from an older checkpoint must not fall upon newer ones of the same directory."""
    newer = [step for step in manager.steps() if step > checkpoint.step]
    if newer:
        raise CheckpointError(
            f"{run_dir.path} holds newer checkpoints (step {newer[-1]}) than {checkpoint.path} (step {checkpoint.step})",
            cure="Name a new training.output_dir to branch off, or delete the newer checkpoints yourself.",
        )


def _refuse_overwriting_steps(config: RunConfig, run_dir: RunDirectory) -> None:
    """Another run that has made steps, though no checkpoint yet, is not overwritten; the same one starts again."""
    if run_dir.has_steps():
        _refuse_changes(run_dir.read_document(), config, f"{run_dir.path} (no checkpoint yet)")


def _refuse_changes(stored: dict[str, Any], config: RunConfig, where: str) -> None:
    changes = changed_keys(_as_of_today(stored, config), with_absolute_paths(config.as_document()))
    for name, key in IN_TRAINING.items():  # what every role says for itself decides nothing under training
        if not any(re.fullmatch(rf"roles\.\w+\.optimizer\.{name}", changed) for changed in changes):
            changes.pop(f"training.{key}", None)
    if any(key.startswith("recipe.") for key in changes):  # then everything differs, and this says why
        changes = {key: change for key, change in changes.items() if key.startswith("recipe.")}
    if changes:
        listed = "\n".join(f"    {key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())
        raise CheckpointError(
            f"the run file does not fit the run in {where}. What changed:\n{listed}",
            cure="Undo the changes to continue that run, or name a new training.output_dir to start another.",
        )


def _as_of_today(stored: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """A stored document with the defaults of keys that did not exist when it was written: a new key is no change."""
    if stored["recipe"] != config.recipe.model_dump():
        return stored  # other plugins: their sections cannot be read with this run's models
    sections = {"training": config.training, "pipeline_config": config.pipeline_config, "method_config": config.method_config}
    try:
        parsed = {name: type(section).model_validate(stored[name]) for name, section in sections.items()}
        run = RunConfig.model_validate({"recipe": stored["recipe"], "roles": stored["roles"], **parsed})
    except ValidationError:
        return stored  # keys that are gone today: shown as changes
    return stored | run.with_optimization_written_out().as_document() | {"plugins": stored["plugins"]}
