"""Whether a run continues, starts, or is refused: decided before any weights are loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fvd.checkpoint.branch import Branch, listed
from fvd.checkpoint.manager import Checkpoint, CheckpointManager, read_checkpoint
from fvd.config.changes import changed_keys, decides_weights, may_change
from fvd.config.models import RunConfig
from fvd.config.optimization import IN_TRAINING
from fvd.errors import CheckpointError
from fvd.rundir import RunDirectory, with_absolute_paths


@dataclass(frozen=True)
class ResumePoint:
    """branch: what is different, where another run's checkpoint is continued; None where a run continues its own."""

    checkpoint: Checkpoint
    branch: Branch | None = None


def find_resume_point(config: RunConfig, resume: str, run_dir: RunDirectory, manager: CheckpointManager) -> ResumePoint | None:
    """Where to continue from, or None to start at step 0.

    resume: ``auto`` (continue what is in the output directory, else start), ``never``, or a checkpoint's path, which is a
    branch where the output directory has no checkpoints of its own. Raises CheckpointError when the output directory is
    another run's, and for a branch whose weights would not fit, with a list of what differs.
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
        if not manager.steps():
            _refuse_overwriting_steps(config, run_dir)
            return ResumePoint(checkpoint, _branch_off(checkpoint, config))
    if checkpoint is None:
        _refuse_overwriting_steps(config, run_dir)
        return None
    where = f"{checkpoint.path.parent.parent} (step {checkpoint.step})"
    _refuse_changes(checkpoint.config, config, where, checkpoint.path)
    return ResumePoint(checkpoint)


def _branch_off(checkpoint: Checkpoint, config: RunConfig) -> Branch:
    changes = _changes(checkpoint.config, config)
    if refused := {key: change for key, change in changes.items() if decides_weights(key)}:
        raise CheckpointError(
            f"the weights in {checkpoint.path} do not fit this run file. What changed:\n{listed(refused)}",
            cure="Undo these changes (all others may stay), or start without --resume and training.resume_from_checkpoint.",
        )
    return Branch(changes)


def _refuse_overwriting(checkpoint: Checkpoint, run_dir: RunDirectory, manager: CheckpointManager) -> None:
    """Continuing from an older checkpoint must not fall upon newer ones of the same directory."""
    newer = [step for step in manager.steps() if step > checkpoint.step]
    if newer:
        raise CheckpointError(
            f"{run_dir.path} holds newer checkpoints (step {newer[-1]}) than {checkpoint.path} (step {checkpoint.step})",
            cure="Name a new training.output_dir to branch off, or delete the newer checkpoints yourself.\n"
            "The newest is continued without --resume and training.resume_from_checkpoint.",
        )


def _refuse_overwriting_steps(config: RunConfig, run_dir: RunDirectory) -> None:
    """Another run that has made steps, though no checkpoint yet, is not overwritten; the same one starts again."""
    if run_dir.has_steps():
        _refuse_changes(run_dir.read_document(), config, f"{run_dir.path} (no checkpoint yet)")


def _refuse_changes(stored: dict[str, Any], config: RunConfig, where: str, checkpoint: Path | None = None) -> None:
    changes = {key: change for key, change in _changes(stored, config).items() if not may_change(key)}
    if changes:
        cure = "Undo the changes to continue that run, or name a new training.output_dir to start another."
        if checkpoint and not any(map(decides_weights, changes)):
            cure += f"\nTo go on from this checkpoint with the changes: a new training.output_dir, and --resume {checkpoint}"
        raise CheckpointError(f"the run file does not fit the run in {where}. What changed:\n{listed(changes)}", cure=cure)


def _changes(stored: dict[str, Any], config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """What ``config`` says otherwise than the run file that was stored, by dotted key."""
    changes = changed_keys(_as_of_today(stored, config), with_absolute_paths(config.as_document()))
    for name, key in IN_TRAINING.items():  # what every role says for itself decides nothing under training
        if not any(re.fullmatch(rf"roles\.\w+\.optimizer\.{name}", changed) for changed in changes):
            changes.pop(f"training.{key}", None)
    if any(key.startswith("recipe.") for key in changes):  # then everything differs, and this says why
        return {key: change for key, change in changes.items() if key.startswith("recipe.")}
    return changes


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
