"""A trained run, opened again: for `fvd sample` and `fvd export`. Only the role that is asked for is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from fvd.checkpoint.manager import Checkpoint, CheckpointManager, load_role_weights
from fvd.config.load import load_run_file
from fvd.config.models import RunConfig
from fvd.errors import ConfigError, FvdError, PluginError, Problem, did_you_mean
from fvd.families import Family
from fvd.methods import Method
from fvd.plugins import PluginOptions, Plugins
from fvd.plugins.discovery import LOCAL
from fvd.plugins.lock import read_lock
from fvd.plugins.missing import noun
from fvd.roles import RoleHandle
from fvd.rundir import RunDirectory
from fvd.runtime import build_family, family_spec
from fvd.specs import FamilySpec
from fvd.validation.request import SamplingPlan
from fvd.validation.weights import Weights


@dataclass(frozen=True)
class TrainedRun:
    run_dir: RunDirectory
    config: RunConfig
    plugins: Plugins
    family: Family
    checkpoint: Checkpoint

    @property
    def sampling_plan(self) -> SamplingPlan:
        """How the method means its result to be sampled."""
        method_class: type[Method] = self.plugins.load("method", self.config.recipe.method)
        return method_class.sampling_plan(self.config)

    @property
    def latent_shape(self) -> tuple[int, int, int, int] | None:
        """The (C, T, H, W) that the run was trained on, where it is known."""
        try:
            shape = json.loads(self.run_dir.lock_file.read_text(encoding="utf-8"))["latent_shape"]
        except (OSError, ValueError, KeyError):
            return None
        return tuple(shape)

    @property
    def family_spec(self) -> FamilySpec:
        return family_spec(self.config, self.plugins)

    def weights_of(self, role: str, wanted: Weights | None) -> Weights:
        """``wanted``, or by default the average (EMA) where the checkpoint has one of this role."""
        return wanted or ("ema" if role in self.checkpoint.averaged_roles else "raw")

    def load_role(self, name: str, weights: Weights) -> RoleHandle:
        """One role with its trained weights or their average; a role that the run keeps frozen, with its original ones.
        Raises FvdError for a role that there is not, and for an average that there is not."""
        if name not in self.config.roles:
            hint = did_you_mean(name, self.config.roles)
            raise FvdError(f"this run has no role {name!r}{hint}", cure=f"Its roles: {', '.join(self.config.roles)}.")
        if not self.config.roles[name].path:
            loaded = [role for role, config in self.config.roles.items() if config.path]
            raise FvdError(
                f"the role {name!r} is made by the method {self.config.recipe.method}: it is no model of the family, and can "
                "neither be sampled nor exported",
                cure=f"Roles that can: {', '.join(loaded)}.",
            )
        frozen = self.config.roles[name].model_copy(update={"trainable": False})
        handle = self.family.load_role(name, frozen)
        if self.config.roles[name].trainable:
            load_role_weights(self.checkpoint, handle, weights)
        elif weights == "ema":
            raise FvdError(f"the role {name} is frozen: it has no average", cure="Leave --weights out.")
        return handle


def open_run(path: Path, *, device: torch.device, options: PluginOptions, step: int | None = None) -> TrainedRun:
    """Raises FvdError for a folder that is no run, or has no checkpoint (of that step)."""
    run_dir = RunDirectory(path.expanduser().absolute())
    if not run_dir.run_file.exists():
        raise FvdError(f"{path} is not a run directory: it has no run.yaml", cure="Name the training.output_dir of a run.")
    loaded = load_run_file(run_dir.run_file, options=options)
    if loaded.errors:
        raise ConfigError(_with_files_left_out(loaded.errors, run_dir, loaded.plugins))
    config = loaded.require()
    checkpoint = CheckpointManager(run_dir.checkpoints).find(step)
    return TrainedRun(run_dir, config, loaded.plugins, build_family(config, loaded.plugins, device), checkpoint)


def _with_files_left_out(errors: list[Problem], run_dir: RunDirectory, plugins: Plugins) -> list[Problem]:
    """First the plugin files that the run was made with and this command was not given, instead of the names that are unknown
    for want of them; then the other ``errors``."""
    try:
        used = read_lock(run_dir.lock_file).plugins
    except PluginError:
        return errors
    given = {record.file for record in plugins.records}
    left_out = [plugin for plugin in used if plugin.source.kind == "file" and plugin.source.location not in given]
    missing = [
        Problem(
            message=f"the run was made with the plugin file {plugin.source.location}",
            file=str(run_dir.run_file),
            cure=f"Add --plugin {plugin.source.location}",
        )
        for plugin in left_out
    ]
    components = [component for plugin in left_out for component in plugin.components]
    return missing + [error for error in errors if not any(_is_unknown(component, error) for component in components)]


def _is_unknown(component: str, error: Problem) -> bool:
    """Whether ``error`` is that nobody provides ``component``, as in ``method:mine``."""
    kind, _, name = component.partition(":")
    subjects = [f"{noun(kind)} {word!r}" for word in (name, f"{LOCAL}:{name}")]
    return "[P08]" in error.message and any(subject in error.message for subject in subjects)
