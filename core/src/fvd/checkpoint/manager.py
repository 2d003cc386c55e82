"""Saving, finding, keeping and loading checkpoints of a run directory."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from fvd.checkpoint.branch import Branch
from fvd.checkpoint.state import (
    averaged_weights,
    lr_scheduler_states,
    module_tensors,
    optimizer_settings,
    restore_lr_schedulers,
    restore_modules,
    restore_role,
    restore_settings,
    role_tensors,
    stepped_optimizers,
)
from fvd.checkpoint.tensors import load_tensors, reason, save_tensors, stored_names, total_bytes
from fvd.errors import CheckpointError, FvdError
from fvd.files import folder_written_aside, remove_folder, remove_folder_leftovers, step_folder
from fvd.plugins.lock import LOCK_FILE, Lock, read_lock
from fvd.roles import RoleHandle, RoleManager
from fvd.validation.weights import Weights

logger = logging.getLogger(__name__)

DESCRIPTION = "checkpoint.json"
FORMAT = 1
FAILED = "failed-"
_STEP = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint on disk."""

    path: Path
    description: dict[str, Any]

    @property
    def step(self) -> int:
        return self.description["step"]

    @property
    def run_dir(self) -> Path:
        """Of the run that wrote it."""
        return self.path.parent.parent

    @property
    def is_of_failure(self) -> bool:
        """Whether training had failed there: it is not good to go on from, unless somebody asks for it by its path."""
        return self.path.name.startswith(FAILED)

    @property
    def config(self) -> dict[str, Any]:
        """The effective run file that it was written under."""
        return self.description["config"]

    @property
    def averaged_roles(self) -> list[str]:
        """The roles whose average (EMA) it holds."""
        return self.description.get("ema", [])  # none before there were any

    def updates(self, role: str) -> int:
        """How often the role had moved."""
        if "updates" in self.description:
            return self.description["updates"][role]
        schedules = self.description["lr_schedulers"][role].values()  # they tick with the role
        return max((state["last_epoch"] for state in schedules), default=0)

    @property
    def lock(self) -> Lock | None:
        """What it was made with; None for one from before there were locks. Raises PluginError for a damaged one."""
        path = self.path / LOCK_FILE
        return read_lock(path) if path.exists() else None

    @property
    def loader_state(self) -> dict[str, Any]:
        return self.description["loader"]


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises CheckpointError for anything that is not a whole checkpoint of this format."""
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {path}")
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        cure = "A checkpoint is a folder like OUTPUT_DIR/checkpoints/step-00000100."
        raise CheckpointError(f"{path} is not a checkpoint: no readable {DESCRIPTION}", cure=cure) from None
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {description.get('format')}, this version reads {FORMAT}")
    return Checkpoint(path, description)


class CheckpointManager:
    """The ``checkpoints/`` folder of one run. A folder named ``step-…`` in it is whole: it got its name last. So is one named
    ``failed-…``, of the same format: what was left when training failed. It counts as no checkpoint of the run."""

    def __init__(self, folder: Path, *, total_limit: int = 0) -> None:
        self.folder = folder
        self.total_limit = total_limit

    def steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        matches = (_STEP.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.folder / step_folder(step)

    def failed_path(self, step: int) -> Path:
        return self.folder / f"{FAILED}{step:08d}"

    def latest(self) -> Checkpoint | None:
        steps = self.steps()
        return read_checkpoint(self.path(steps[-1])) if steps else None

    def find(self, step: int | None) -> Checkpoint:
        """The checkpoint of ``step``, or the latest. Raises CheckpointError that lists what is there."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self.folder}", cure="Has the run reached its first save?")
        if step is not None and step not in steps:
            raise CheckpointError(
                f"there is no checkpoint of step {step} in {self.folder}", cure=f"There are: {_listed(steps)}."
            )
        return read_checkpoint(self.path(steps[-1] if step is None else step))

    def save(
        self,
        step: int,
        roles: RoleManager,
        *,
        method_state: dict[str, Any],
        loader_state: dict[str, Any],
        lock: Lock,
        doubtful_since: int | None = None,
    ) -> Path:
        """Write everything that a resume needs. Raises CheckpointError when the disk refuses; then nothing is left
        behind and earlier checkpoints are untouched.

        doubtful_since: a step from which on the checkpoints may turn out to be of a failure: the newest before it stays,
        however many there are.
        """
        path = self._write(self.path(step), step, roles, method_state, loader_state, lock)
        self._forget_old(doubtful_since)
        return path

    def save_failed(
        self, step: int, roles: RoleManager, *, method_state: dict[str, Any], loader_state: dict[str, Any], lock: Lock
    ) -> Path:
        """Write the same to ``failed-…``, for somebody to look at. No checkpoint is removed for it. Raises as `save` does."""
        return self._write(self.failed_path(step), step, roles, method_state, loader_state, lock)

    def set_aside(self, since: int) -> None:
        """Rename the checkpoints from step ``since`` on to ``failed-…``: training had begun to fail there."""
        for step in self.steps():
            if step >= since:
                failed = self.failed_path(step)
                if failed.exists():
                    remove_folder(failed)
                self.path(step).rename(failed)

    def _write(
        self,
        path: Path,
        step: int,
        roles: RoleManager,
        method_state: dict[str, Any],
        loader_state: dict[str, Any],
        lock: Lock,
    ) -> Path:
        optimizer_keys = {handle.name: stepped_optimizers(handle) for handle in roles.trainable}
        role_state = {
            handle.name: role_tensors(handle, optimizer_keys[handle.name], with_ema=True) for handle in roles.trainable
        }
        tensors = {"roles": role_state, "method": method_state}
        description = {
            "format": FORMAT,
            "step": step,
            "optimizers": optimizer_keys,
            "lr_schedulers": lr_scheduler_states(roles),
            "updates": {handle.name: handle.updates for handle in roles.trainable},
            "ema": [handle.name for handle in roles.trainable if handle.ema],
            "loader": loader_state,
            "config": lock.run_file,
        }
        try:
            self._check_space(total_bytes(tensors))
            with folder_written_aside(path) as aside:
                save_tensors(tensors, aside)
                (aside / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")
                (aside / LOCK_FILE).write_text(lock.as_json(), encoding="utf-8")
        except (OSError, CheckpointException, FvdError) as error:
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {reason(error)}",
                cure=self._what_is_left(
                    "Free some space (or name another training.output_dir) and run the same command again: "
                ),
            ) from error
        return path

    def load(self, checkpoint: Checkpoint, roles: RoleManager, method: nn.Module, *, branch: Branch | None = None) -> None:
        """Fill modules, optimizers, LR schedulers and averages of all trainable roles, and the method's own buffers, bit for
        bit. An average that the checkpoint has not begins at its weights; one that the run does not keep is left aside.
        A ``branch`` keeps the settings that ``roles`` were built with; its schedules are `Method.begin_schedules_at`'s."""
        built = {handle.name: optimizer_settings(handle) for handle in roles.trainable}
        fresh = branch.fresh_optimizers if branch else frozenset()
        keys = {role: [] if role in fresh else names for role, names in checkpoint.description["optimizers"].items()}
        role_state = {
            handle.name: role_tensors(handle, keys[handle.name], with_ema=handle.name in checkpoint.averaged_roles)
            for handle in roles.trainable
        }
        tensors = {"roles": role_state, "method": method.state_dict()}
        load_tensors(tensors, checkpoint.path)
        for handle in roles.trainable:
            restore_role(handle, role_state[handle.name])
            handle.updates = checkpoint.updates(handle.name)
            if handle.ema is None and handle.name in checkpoint.averaged_roles:
                logger.info("the run keeps no average of %s: that of the checkpoint goes no further", handle.name)
            if handle.ema and handle.name not in checkpoint.averaged_roles:
                handle.ema.restart()
                logger.info(
                    "the checkpoint has no average of %s: it begins at the weights of step %d", handle.name, checkpoint.step
                )
        method.load_state_dict(tensors["method"])
        if branch is None:
            restore_lr_schedulers(roles, checkpoint.description["lr_schedulers"])
            return
        for handle in roles.trainable:
            restore_settings(handle, built[handle.name])
            if handle.name in fresh:
                logger.info(
                    "%s has another optimizer than in the checkpoint: what that had gathered is left aside", handle.name
                )

    def remove_leftovers(self) -> None:
        """What a kill in the middle of a save left: as large as a checkpoint each."""
        remove_folder_leftovers(self.folder)

    def _what_is_left(self, prefix: str) -> str:
        steps = self.steps()
        where = f"it continues from step {steps[-1]} ({self.path(steps[-1])})." if steps else "there is no earlier checkpoint."
        return prefix + where

    def _check_space(self, needed: int) -> None:
        """Refuse early what cannot fit: a disk that is full to the last byte harms more than this run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(f"it needs {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free")

    def _forget_old(self, doubtful_since: int | None) -> None:
        if self.total_limit:
            steps = self.steps()
            sound = [step for step in steps if doubtful_since is None or step < doubtful_since]
            for step in sorted({*steps[: -self.total_limit]} - {*sound[-1:]}):
                try:
                    remove_folder(self.path(step))
                except OSError as error:
                    logger.warning("the old checkpoint %s could not be removed: %s", self.path(step), error)


def load_role_weights(checkpoint: Checkpoint, handle: RoleHandle, weights: Weights) -> None:
    """Fill one role's modules, for sampling and export. Raises CheckpointError if the checkpoint has no such role, or no
    average of it."""
    trained = checkpoint.description["optimizers"]
    if handle.name not in trained:
        raise CheckpointError(
            f"{checkpoint.path} holds no weights of role {handle.name}", cure=f"It holds: {', '.join(trained)}."
        )
    state = module_tensors(handle)
    if weights == "ema" and handle.name not in checkpoint.averaged_roles:
        raise CheckpointError(
            f"{checkpoint.path} holds no average (EMA) of role {handle.name}",
            cure=f"Take the weights as they were trained (raw); `roles.{handle.name}.ema` of a run file asks for an average.",
        )
    load_tensors({"roles": {handle.name: state}}, checkpoint.path)
    restore_modules(handle, state)
    if weights == "ema":
        average = averaged_weights(handle, _averaged_names(checkpoint, handle.name))
        load_tensors({"roles": {handle.name: average}}, checkpoint.path)


def _averaged_names(checkpoint: Checkpoint, role: str) -> set[str]:
    prefix = f"roles.{role}.ema."
    return {name.removeprefix(prefix) for name in stored_names(checkpoint.path) if name.startswith(prefix)}


def _listed(steps: list[int]) -> str:
    return ", ".join(str(step) for step in steps[-10:])
