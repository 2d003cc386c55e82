"""Wiring: from a parsed run file to the objects that the trainer runs. The one place where everything meets.

Cheap things come first, so that a mistake costs seconds: resume point, data, then weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fvd.adapters import Adapter
from fvd.checkpoint.branch import Branch
from fvd.checkpoint.manager import Checkpoint, CheckpointManager
from fvd.checkpoint.resume import find_resume_point
from fvd.config.load import LoadedRun
from fvd.config.models import RunConfig
from fvd.data.loader import Loader, build_held_out, build_loader
from fvd.data.trajectories import with_trajectories
from fvd.families import Family, FamilyContext
from fvd.files import step_folder
from fvd.made_roles import add_made_roles, made_role_names
from fvd.methods import Method
from fvd.optim import check_optimizers
from fvd.plugins import Plugins
from fvd.plugins.lock import Lock, make_lock
from fvd.recompute import recompute_activations
from fvd.roles import RoleHandle, RoleManager
from fvd.rundir import RunDirectory, with_absolute_paths
from fvd.samplers.sampling import check_plan, load_sampler
from fvd.specs import FamilySpec, MethodSpec, Spec
from fvd.step_contract import check_method, check_role_names
from fvd.validation.base import Validator, ValidatorContext, never_stopped
from fvd.validation.held_out import LOSSES, HeldOutLoss
from fvd.validation.prompts import Prompt, read_prompts
from fvd.video_size import LatentShape, check_size_early, resolve_latent_shape, video_geometry

logger = logging.getLogger(__name__)


@dataclass
class Runtime:
    """What a run consists of. Hooks get it as ``run``."""

    config: RunConfig
    plugins: Plugins
    device: torch.device
    run_dir: RunDirectory
    checkpoints: CheckpointManager
    resume_from: Checkpoint | None
    family: Family
    roles: RoleManager
    adapter: Adapter
    method: Method
    loader: Loader
    validator: Validator | None
    held_out: HeldOutLoss | None
    latent_shape: LatentShape
    """(C, T, H, W) of the videos of this run."""
    lock: Lock
    """What the run is made with."""
    branch: Branch | None = None
    """What is different, where ``resume_from`` is another run's."""

    @property
    def start_step(self) -> int:
        return self.resume_from.step if self.resume_from else 0

    def restore(self) -> None:
        """Bring roles, method and data to where ``resume_from`` left them; nothing where there is none."""
        if self.resume_from is None:
            return
        self.checkpoints.load(self.resume_from, self.roles, self.method, branch=self.branch)
        if self.branch:
            self.method.begin_schedules_at(self.start_step)
        position = self.resume_from.loader_state
        if self.branch and (reason := self.branch.why_data_begin_anew(position["data"], self.loader.fingerprint)):
            logger.info("the data begin anew: %s", reason)
        else:
            self.loader.load_state_dict(position)


@dataclass(frozen=True)
class RunPlan:
    """What is decided before anything heavy is loaded: where the run writes, and where it continues."""

    config: RunConfig
    plugins: Plugins
    run_dir: RunDirectory
    checkpoints: CheckpointManager
    resume_from: Checkpoint | None
    branch: Branch | None
    lock: Lock

    @property
    def start_step(self) -> int:
        return self.resume_from.step if self.resume_from else 0

    @property
    def nothing_to_do(self) -> bool:
        """Whether the run has come to its end, its last validation included."""
        training = self.config.training
        if self.resume_from is None or self.resume_from.is_of_failure or self.start_step < training.max_train_steps:
            return False
        if self.start_step > training.max_train_steps:
            return True
        has_videos = not training.log_validation or (self.run_dir.validation / step_folder(self.start_step)).exists()
        if not has_videos or not training.computes_held_out_loss:
            return has_videos
        return any(self.run_dir.has_logged(self.start_step, metric) for metric in LOSSES.values())


def plan_run(loaded: LoadedRun, *, resume: str) -> RunPlan:
    """Raises ConfigError for a run file with errors, CheckpointError for an output directory that cannot be used."""
    config = loaded.require()
    run_dir = RunDirectory(Path(config.training.output_dir).expanduser().absolute())
    checkpoints = CheckpointManager(run_dir.checkpoints, total_limit=config.training.checkpoints_total_limit)
    point = find_resume_point(config, resume, run_dir, checkpoints)
    run_dir.check_writable()
    return RunPlan(
        config=config,
        plugins=loaded.plugins,
        run_dir=run_dir,
        checkpoints=checkpoints,
        resume_from=point.checkpoint if point else None,
        branch=point.branch if point else None,
        lock=lock_run(config, loaded.plugins),
    )


def build_runtime(plan: RunPlan, *, stop_requested: Callable[[], bool] = never_stopped) -> Runtime:
    """Build everything that the run file asks for; nothing is written. stop_requested: see `ValidatorContext`.

    Raises FvdError for whatever a user can mend: data, models, plugins.
    """
    config, plugins = plan.config, plan.plugins
    device = choose_device()
    family = build_family(config, plugins, device)
    method_class = load_method(config, plugins)
    check_plan(method_class.sampling_plan(config), plugins, family_spec(config, plugins))
    data_spec = family.data_spec()
    latents_source = method_class.latents_source(config)
    dataset_kind = plugins.dataset_kind_of(family_spec(config, plugins))
    needed_spec = with_trajectories(data_spec) if method_class.needs_trajectories(config) else data_spec
    loader = build_loader(config, plugins, dataset_kind, needed_spec, needs_latents=latents_source == "data")
    held_out = build_held_out(config, plugins, dataset_kind, data_spec, loader)
    prompts = _read_prompts(config)
    check_optimizers(config, device)
    check_size_early(config, family, loader.shapes, data_spec, latents_source)

    made = made_role_names(config, method_spec(config, plugins))
    roles = RoleManager([_load_role(family, name, config) for name in config.roles if name not in made])
    adapter = family.build_adapter(roles)
    latent_shape = resolve_latent_shape(config, adapter.latent_shape, loader.shapes, data_spec, latents_source)
    add_made_roles(made, method_class, run=config, roles=roles, adapter=adapter, latent_shape=latent_shape)
    for name in made:
        _describe_role(roles[name], config)
    method = method_class.build(run=config, roles=roles, adapter=adapter)
    check_method(method, method_spec(config, plugins))
    return Runtime(
        config=config,
        plugins=plugins,
        device=device,
        run_dir=plan.run_dir,
        checkpoints=plan.checkpoints,
        resume_from=plan.resume_from,
        family=family,
        roles=roles,
        adapter=adapter,
        method=method,
        loader=loader,
        validator=(
            _build_validator(config, plugins, adapter, prompts, latent_shape, plan.run_dir, stop_requested) if prompts else None
        ),
        held_out=HeldOutLoss(method, held_out, device) if held_out else None,
        latent_shape=latent_shape,
        lock=replace(plan.lock, latent_shape=latent_shape),
        branch=plan.branch,
    )


def lock_run(config: RunConfig, plugins: Plugins) -> Lock:
    """What this run is made with. Imports the method, which knows the sampler, and loads no weights."""
    return make_lock(plugins, used_specs(config, plugins), with_absolute_paths(config.as_document()))


def describe_run(runtime: Runtime, loaded: LoadedRun) -> Path:
    """Write run.yaml, run.lock.json and the run file as given; returns the path of the latter."""
    return runtime.run_dir.prepare(runtime.config, runtime.lock, source_name=loaded.path.name, source_text=loaded.text)


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_family(config: RunConfig, plugins: Plugins, device: torch.device) -> Family:
    """The run's family, with the shared parts taken from ``components_path`` or the first role that has a path."""
    training = config.training
    first_path = next(role.path for role in config.roles.values() if role.path)
    context = FamilyContext(
        config=config.pipeline_config,
        components_path=config.pipeline_config.components_path or first_path,
        device=device,
        geometry=video_geometry(config),
        latent_frames=training.num_latent_t,
        conditioning_dropout_rate=training.training_cfg_rate,
        autocast_dtype=_autocast_dtype(config, device),
    )
    return plugins.load("family", config.recipe.family)(context)


def family_spec(config: RunConfig, plugins: Plugins) -> FamilySpec:
    spec = plugins.spec("family", config.recipe.family)
    assert isinstance(spec, FamilySpec)
    return spec


def method_spec(config: RunConfig, plugins: Plugins) -> MethodSpec:
    spec = plugins.spec("method", config.recipe.method)
    assert isinstance(spec, MethodSpec)
    return spec


def load_method(config: RunConfig, plugins: Plugins) -> type[Method]:
    """The run's method. Raises PluginError where it names other roles than its descriptor."""
    method: type[Method] = plugins.load("method", config.recipe.method)
    check_role_names(method, method_spec(config, plugins))
    return method


def used_specs(config: RunConfig, plugins: Plugins) -> list[Spec]:
    """The descriptors of everything that this run uses."""
    method = load_method(config, plugins)
    kinds = [("family", config.role_family(role)) for role in config.roles]
    kinds += [("method", config.recipe.method), ("sampler", method.sampling_plan(config).sampler_kind)]
    kinds += [
        ("validator", validator_name(config, plugins)),
        ("dataset_kind", plugins.dataset_kind_of(family_spec(config, plugins))),
    ]
    kinds += [("tracker", name) for name in config.training.trackers]
    return [plugins.spec(kind, name) for kind, name in dict.fromkeys(kinds)]


def validator_name(config: RunConfig, plugins: Plugins) -> str:
    return config.training.validator or plugins.validator_of(family_spec(config, plugins))


def _build_validator(
    config: RunConfig,
    plugins: Plugins,
    adapter: Adapter,
    prompts: list[Prompt],
    latent_shape: LatentShape,
    run_dir: RunDirectory,
    stop_requested: Callable[[], bool],
) -> Validator:
    context = ValidatorContext(
        adapter=adapter,
        load_sampler=lambda kind: load_sampler(plugins, kind),
        prompts=prompts,
        latent_shape=latent_shape,
        output_dir=run_dir.validation,
        fps=config.training.validation_fps,
        stop_requested=stop_requested,
    )
    validator: Validator = plugins.load("validator", validator_name(config, plugins))(context)
    return validator


def _autocast_dtype(config: RunConfig, device: torch.device) -> torch.dtype | None:
    return compute_dtype(device) if config.training.mixed_precision == "bf16" else None


def compute_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device has it, else None: float32 throughout."""
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_it else None


def _read_prompts(config: RunConfig) -> list[Prompt]:
    training = config.training
    if not training.log_validation or training.validation_dataset_file is None:
        return []
    return read_prompts(Path(training.validation_dataset_file).expanduser(), first_seed=training.seed)


def _load_role(family: Family, name: str, config: RunConfig) -> RoleHandle:
    handle = family.load_role(name, config.roles[name])
    if handle.trainable and config.training.enable_gradient_checkpointing_type == "full":
        recompute_activations(family, handle)
    _describe_role(handle, config)
    return handle


def _describe_role(handle: RoleHandle, config: RunConfig) -> None:
    parameters = sum(parameter.numel() for module in handle.modules.values() for parameter in module.parameters())
    state = "trained" if handle.trainable else "frozen"
    where = config.roles[handle.name].path or "made by the method"
    logger.info("role %-8s %s  %s parameters, %s", handle.name, where, _human(parameters), state)


def _human(count: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return str(count)
