"""Wiring: from a parsed run file to the objects that the trainer runs. The one place where everything meets.

Cheap things come first, so that a mistake costs seconds: resume point, data, then weights.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from fvd.adapters import Adapter
from fvd.checkpoint.manager import Checkpoint, CheckpointManager
from fvd.checkpoint.resume import find_resume_point
from fvd.config.load import LoadedRun
from fvd.config.models import RunConfig
from fvd.data.loader import Loader, build_loader
from fvd.data.spec import DataSpec, VideoGeometry
from fvd.errors import FvdError
from fvd.families import Family, FamilyContext
from fvd.methods import Method
from fvd.plugins import Plugins
from fvd.plugins.lock import plugin_lock
from fvd.roles import RoleHandle, RoleManager
from fvd.rundir import RunDirectory
from fvd.specs import Spec
from fvd.validation.prompts import Prompt, read_prompts
from fvd.validation.video import VideoValidator

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
    validator: VideoValidator | None
    latent_shape: tuple[int, int, int, int] | None
    """(C, T, H, W) of the videos of this run; None where neither the run file nor the data say."""

    @property
    def start_step(self) -> int:
        return self.resume_from.step if self.resume_from else 0


def build_runtime(loaded: LoadedRun, *, resume: str) -> Runtime:
    """Build everything that ``loaded`` asks for, and write the run directory's description of it.

    Raises FvdError for whatever a user can mend: another run's directory, data, models.
    """
    config, plugins = loaded.require(), loaded.plugins
    run_dir = RunDirectory(_output_dir(config))
    checkpoints = CheckpointManager(run_dir.checkpoints, total_limit=config.training.checkpoints_total_limit)
    resume_from = find_resume_point(config, resume, run_dir, checkpoints)

    device = choose_device()
    family = build_family(config, plugins, device)
    method_class: type[Method] = plugins.load("method", config.recipe.method)
    data_spec = family.data_spec()
    loader = build_loader(config, plugins, data_spec, needs_latents=method_class.latents_source(config) == "data")
    prompts = _read_prompts(config)

    roles = RoleManager([_load_role(family, name, config) for name in config.roles])
    adapter = family.build_adapter(roles)
    method = method_class.build(run=config, roles=roles, adapter=adapter)
    latent_shape = sample_shape(config, adapter, loader, data_spec)
    validator = None
    if prompts:
        if latent_shape is None:
            raise FvdError(
                "nothing says how large validation videos should be: the data hold text only",
                cure="Set training.num_frames, training.num_height and training.num_width.",
            )
        validator = VideoValidator(
            adapter=adapter,
            load_sampler=lambda kind: plugins.load("sampler", kind),
            prompts=prompts,
            latent_shape=latent_shape,
            output_dir=run_dir.validation,
            fps=config.training.validation_fps,
        )
    return Runtime(
        config,
        plugins,
        device,
        run_dir,
        checkpoints,
        resume_from,
        family,
        roles,
        adapter,
        method,
        loader,
        validator,
        latent_shape,
    )


def describe_run(runtime: Runtime, loaded: LoadedRun) -> Path:
    """Write run.yaml, run.lock.json and the run file as given; returns the path of the latter."""
    lock = plugin_lock(runtime.plugins, used_specs(runtime.config, runtime.plugins, runtime.method))
    lock["latent_shape"] = runtime.latent_shape
    return runtime.run_dir.prepare(runtime.config, lock, source_name=loaded.path.name, source_text=loaded.text)


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_family(config: RunConfig, plugins: Plugins, device: torch.device) -> Family:
    """The run's family, with the shared parts taken from ``components_path`` or the first role."""
    training = config.training
    first_role = next(iter(config.roles.values()))
    context = FamilyContext(
        config=config.pipeline_config,
        components_path=config.pipeline_config.components_path or first_role.path,
        device=device,
        geometry=video_geometry(config),
        latent_frames=training.num_latent_t,
        conditioning_dropout_rate=training.training_cfg_rate,
        gradient_checkpointing=training.enable_gradient_checkpointing_type == "full",
        autocast_dtype=_autocast_dtype(config, device),
    )
    return plugins.load("family", config.recipe.family)(context)


def video_geometry(config: RunConfig) -> VideoGeometry | None:
    training = config.training
    if training.num_frames and training.num_height and training.num_width:
        return VideoGeometry(num_frames=training.num_frames, height=training.num_height, width=training.num_width)
    return None


def sample_shape(config: RunConfig, adapter: Adapter, loader: Loader, spec: DataSpec) -> tuple[int, int, int, int] | None:
    """(C, T, H, W) of what the run samples: the run file's size, or else that of the data, if it holds latents."""
    geometry = video_geometry(config)
    if geometry:
        channels, frames, height, width = adapter.latent_shape(geometry)
        return channels, config.training.num_latent_t or frames, height, width
    for field in spec.fields:
        if field.source == "latents" and field.name in loader.shapes:
            channels, frames, height, width = (loader.shapes[field.name][axis] for axis in field.axes)
            return channels, min(frames, config.training.num_latent_t or frames), height, width
    return None


def used_specs(config: RunConfig, plugins: Plugins, method: Method) -> list[Spec]:
    """The descriptors of everything that this run uses."""
    kinds = [("family", config.role_family(role)) for role in config.roles]
    kinds += [("method", config.recipe.method), ("sampler", method.sampling_plan(config).sampler_kind)]
    kinds += [("tracker", name) for name in config.training.trackers]
    return [plugins.spec(kind, name) for kind, name in dict.fromkeys(kinds)]


def _output_dir(config: RunConfig) -> Path:
    return Path(config.training.output_dir).expanduser().absolute()


def _autocast_dtype(config: RunConfig, device: torch.device) -> torch.dtype | None:
    wanted = config.training.mixed_precision == "bf16" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if wanted else None


def _read_prompts(config: RunConfig) -> list[Prompt]:
    training = config.training
    if not training.log_validation or training.validation_dataset_file is None:
        return []
    return read_prompts(Path(training.validation_dataset_file).expanduser(), first_seed=training.seed)


def _load_role(family: Family, name: str, config: RunConfig) -> RoleHandle:
    handle = family.load_role(name, config.roles[name])
    parameters = sum(parameter.numel() for module in handle.modules.values() for parameter in module.parameters())
    state = "trained" if handle.trainable else "frozen"
    logger.info("role %-8s %s  %s parameters, %s", name, config.roles[name].path, _human(parameters), state)
    return handle


def _human(count: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return str(count)
