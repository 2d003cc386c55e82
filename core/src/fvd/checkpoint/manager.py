"""Saving, finding, keeping and loading checkpoints of a run directory."""

from __future__ import annotations

import json
import logging
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from fvd.checkpoint.state import (
    averaged_weights,
    lr_scheduler_states,
    module_tensors,
    restore_lr_schedulers,
    restore_modules,
    restore_role,
    role_tensors,
    stepped_optimizers,
)
from fvd.errors import CheckpointError, FvdError
from fvd.files import folder_written_aside, remove_folder, remove_folder_leftovers, step_folder
from fvd.plugins.lock import LOCK_FILE, Lock, read_lock
from fvd.roles import RoleHandle, RoleManager
from fvd.validation.weights import Weights

logger = logging.getLogger(__name__)

DESCRIPTION = "checkpoint.json"
TENSORS = "state"
FORMAT = 1
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
    """The ``checkpoints/`` folder of one run. A folder named ``step-…`` in it is whole: it got its name last."""

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
    ) -> Path:
        """Write everything that a resume needs. Raises CheckpointError when the disk refuses; then nothing is left
        behind and earlier checkpoints are untouched."""
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
            self._check_space(_total_bytes(tensors))
            with folder_written_aside(self.path(step)) as aside:
                _save_tensors(tensors, aside / TENSORS)
                (aside / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")
                (aside / LOCK_FILE).write_text(lock.as_json(), encoding="utf-8")
        except (OSError, CheckpointException, FvdError) as error:
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {_reason(error)}",
                cure=self._what_is_left(
                    "Free some space (or name another training.output_dir) and run the same command again: "
                ),
            ) from error
        self._forget_old()
        return self.path(step)

    def load(self, checkpoint: Checkpoint, roles: RoleManager, method: nn.Module) -> None:
        """Fill modules, optimizers, LR schedulers and averages of all trainable roles, and the method's own buffers, bit for
        bit. An average that the checkpoint has not begins at its weights; one that the run does not keep is left aside."""
        keys = checkpoint.description["optimizers"]
        role_state = {
            handle.name: role_tensors(handle, keys[handle.name], with_ema=handle.name in checkpoint.averaged_roles)
            for handle in roles.trainable
        }
        tensors = {"roles": role_state, "method": method.state_dict()}
        _load_tensors(tensors, checkpoint.path)
        for handle in roles.trainable:
            restore_role(handle, role_state[handle.name])
            handle.updates = checkpoint.updates(handle.name)
            if handle.ema and handle.name not in checkpoint.averaged_roles:
                handle.ema.restart()
                logger.info(
                    "the checkpoint has no average of %s: it begins at the weights of step %d", handle.name, checkpoint.step
                )
        method.load_state_dict(tensors["method"])
        restore_lr_schedulers(roles, checkpoint.description["lr_schedulers"])

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

    def _forget_old(self) -> None:
        if self.total_limit:
            for step in self.steps()[: -self.total_limit]:
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
    _load_tensors({"roles": {handle.name: state}}, checkpoint.path)
    restore_modules(handle, state)
    if weights == "ema":
        average = averaged_weights(handle, _averaged_names(checkpoint, handle.name))
        _load_tensors({"roles": {handle.name: average}}, checkpoint.path)


def _averaged_names(checkpoint: Checkpoint, role: str) -> set[str]:
    prefix = f"roles.{role}.ema."
    stored = dcp.FileSystemReader(checkpoint.path / TENSORS).read_metadata().state_dict_metadata
    return {name.removeprefix(prefix) for name in stored if name.startswith(prefix)}


def _save_tensors(tensors: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        # "assuming the intent is to save in a single process": it is.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder, sync_files=True), no_dist=True)


def _load_tensors(tensors: dict[str, Any], path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=dcp.FileSystemReader(path / TENSORS), no_dist=True)
    except (CheckpointException, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be loaded: {_reason(error)}",
            cure="It is damaged, or made with other models. Without it, an older one counts; sample and export take --step.",
        ) from error


def _total_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_total_bytes(item) for item in value.values()) if isinstance(value, dict) else 0


def _reason(error: BaseException) -> str:
    """The first real cause inside torch's collected failures."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _listed(steps: list[int]) -> str:
    return ", ".join(str(step) for step in steps[-10:])
