"""The typed form of a run file (schema v2). Pydantic, strict: unknown keys are errors. No torch here.

`TrainingConfig` is infrastructure only. What an algorithm or a model kind needs lives in the method's and the family's
own models, subclasses of `MethodConfig` and `PipelineConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    field_validator,
)

from fvd.accounting import Passes
from fvd.config.optimization import (
    IN_TRAINING,
    EmaConfig,
    EmaSettings,
    OptimizerConfig,
    OptimizerSettings,
    RoleDefaults,
    given,
    takes_setting,
)
from fvd.config.strict import Betas as Betas
from fvd.config.strict import LrSchedulerName as LrSchedulerName
from fvd.config.strict import StepCounts, first_number
from fvd.config.strict import StrictModel as StrictModel


class PipelineConfig(StrictModel):
    """What every family understands under ``pipeline_config:``; families subclass it."""

    flow_shift: Annotated[float, Field(gt=0)] = 1.0
    """The one source of the flow shift: training density, score timesteps and flow-matching samplers all use it.

    1 is none. Families whose models were made with a shift have it as their default; diffusion families shift the timesteps
    of training alone, and their solvers place their own.
    """
    sampler_kind: str | None = None
    """Sampler for validation and `fvd sample`, unless the method asks for its own. Default: ode."""
    components_path: str | None = None
    """Folder or hub id of the VAE, text encoder and tokenizer. Default: the path of the first role."""
    negative_prompt: str = ""
    """Text of the unconditional branch of guidance."""


@dataclass(frozen=True, kw_only=True)
class SamplingLadder:
    """How a few-step student is sampled, and no other way.

    timesteps: of its forwards, descending, in [0, num_train_timesteps]. shift_timesteps: they are before the flow shift.
    sampler_kind: a registered sampler that takes timesteps. guidance_scale: standard convention, 1.0 = none.
    """

    sampler_kind: str
    timesteps: tuple[float, ...]
    shift_timesteps: bool = False
    guidance_scale: float = 1.0


class MethodConfig(StrictModel):
    """Base of every method's ``method_config:`` model."""

    def sampling_ladder(self) -> SamplingLadder | None:
        """The ladder that the method trains a few-step student on. Validation and `fvd sample` then use it, whatever number of
        steps the run file asks for. None: the run file says how to sample."""
        return None

    def role_defaults(self, role: str) -> RoleDefaults:
        """The optimizer and EMA that are right for ``role`` where the run file is silent (`fvd.config.optimization`)."""
        return RoleDefaults()

    def role_updates(self, run: RunConfig, role: str) -> int:
        """How often the trained ``role`` moves in ``run``, the same as `Method.roles_to_update` says step by step: `fvd check`
        warns of a role that never moves, or never leaves its warm-up. Default: at every step."""
        return run.training.max_train_steps

    def expected_passes(self, run: RunConfig) -> Mapping[str, Passes] | None:
        """What each role's network does in a step of ``run``, on average, a micro-batch: compared at the end of a run with what
        was counted. None: the method does not say."""
        return None

    # --- for `fvd check --explain` ---
    def sources(self) -> Mapping[str, str]:
        """Where a value comes from that the run file does not say, as ``preset NAME``: by key of ``method_config``, dotted
        where keys are nested, and ``roles.<role>`` for what `role_defaults` says. Keys left out have the model's default."""
        return {}

    def meanings(self, run: RunConfig) -> Mapping[str, str]:
        """What the value of a key means in ``run``, a short sentence, with the formula where there is one: by key, as in
        `sources`. Keys left out have the first sentence of their description."""
        return {}

    def headlines(self, run: RunConfig) -> Mapping[str, str]:
        """What one wants to know of ``run`` first, beside what core can say: a word or two, and a sentence."""
        return {}


class Recipe(StrictModel):
    family: str
    """Default family of every role."""
    method: str
    """The training algorithm."""


class RoleConfig(StrictModel):
    family: str | None = None
    """Kind of model; default ``recipe.family``."""
    path: str = ""
    """A local folder in diffusers format, or a hub id. Required, but for roles that the method makes itself."""
    trainable: bool | None = None
    """Whether this role is trained; default: what the method says of the role."""
    optimizer: OptimizerConfig | None = None
    """How this role is optimized, where it differs from training: and from what the method says of the role."""
    ema: EmaConfig | bool | None = None
    """An average of this role's weights, {decay: 0.999, start_step: 0}; false = none. Default: what the method says."""


class PluginsConfig(StrictModel):
    require: tuple[str, ...] = ()
    """Version ranges that must be installed, ``fvd-wan>=0.1,<0.2``."""
    only: tuple[str, ...] | None = None
    """Load no other plugin than these (and core)."""


class TrainingConfig(StrictModel):
    """Infrastructure of a run."""

    output_dir: str
    """The run directory."""
    max_train_steps: NonNegativeInt
    """Optimizer steps (of the fastest role)."""
    data_path: str | tuple[str, ...] | dict[str, NonNegativeInt] | None = None
    """Prepared data: a folder, several (``"a:2,b"`` repeats a twice), a list, or ``{folder: repeats}``. Required, but for
    families that make their data themselves."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    """Every draw of training follows from it."""

    # data
    train_batch_size: PositiveInt = 1
    """Samples of one micro-batch."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches of one step."""
    dataloader_num_workers: NonNegativeInt = 1
    """Threads that read ahead; 0 reads in the training loop."""
    training_cfg_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of samples whose text is dropped, drawn anew each epoch."""
    num_frames: PositiveInt | None = None
    """Frames of a video, where the data do not say (text-only) and for validation."""
    num_height: PositiveInt | None = None
    """Pixels; given together with num_frames and num_width."""
    num_width: PositiveInt | None = None
    """Pixels."""
    num_latent_t: PositiveInt | None = None
    """Latent frames to train on; crops longer data."""

    # optimizer of every trained role, but for what roles.<role>.optimizer says otherwise
    optimizer: str = "AdamW"
    """A class of torch.optim, such as AdamW or SGD; with the extra `fvd-core[8bit]` AdamW8bit too."""
    learning_rate: NonNegativeFloat = 1e-5
    """After the warm-up."""
    betas: Betas = (0.9, 0.999)
    """Of optimizers that have them."""
    eps: NonNegativeFloat = 1e-8
    """Of optimizers that have it."""
    weight_decay: NonNegativeFloat = 0.01
    """Of optimizers that have it."""
    optimizer_arguments: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Further arguments of the optimizer's class, {momentum: 0.9}."""
    lr_scheduler: LrSchedulerName = "constant"
    """How the learning rate decays after the warm-up, over the rest of the role's own updates."""
    lr_warmup_steps: NonNegativeInt = 0
    """Updates of a role in which its learning rate rises linearly."""
    lr_num_cycles: NonNegativeInt = 1
    """cosine_with_restarts: number of cycles."""
    lr_power: NonNegativeFloat = 1.0
    """polynomial: the exponent."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What the learning rate decays to, as a share of it."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradient norm of each role is clipped to this; 0 = no clipping."""

    # precision and memory
    mixed_precision: Literal["bf16", "no", "fp32"] = "bf16"
    """Compute dtype on devices that have bf16; master weights are float32 always."""
    enable_gradient_checkpointing_type: Literal["full"] | None = None
    """Recompute the activations of trainable roles in the backward pass."""

    # checkpoints
    training_state_checkpointing_steps: NonNegativeInt = 500
    """Save every so many steps; 0 = only at the end."""
    checkpoints_total_limit: NonNegativeInt = 0
    """Keep the newest so many; 0 = all."""
    resume_from_checkpoint: str = ""
    """Checkpoint folder to continue from, as `--resume PATH`."""

    # validation
    log_validation: bool = False
    """Whether to sample the prompts of validation_dataset_file during training."""
    validation_steps: NonNegativeInt = 100
    """Validate at step 0 and every so many steps; 0 = only at step 0 and at the end."""
    validation_dataset_file: str | None = None
    """Prompts: json, jsonl, csv or txt."""
    validation_sampling_steps: StepCounts = (50,)
    """Denoising steps; several numbers make several videos a prompt. Where the method trains a few-step student on a ladder, it
    is the length of that ladder."""
    validation_guidance_scale: Annotated[NonNegativeFloat, BeforeValidator(first_number)] = 5.0
    """Standard convention, 1.0 = none."""
    validation_weights: Literal["both", "ema", "raw"] = "both"
    """Sample with the trained weights (raw), with their average (ema), or with each from the same noise; both is raw alone
    where the role has no average."""
    validation_split: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the samples of data_path that is never trained on, chosen by their ids and the seed: the held-out loss is
    theirs."""
    validation_data_path: str | tuple[str, ...] | dict[str, NonNegativeInt] | None = None
    """Prepared data for the held-out loss, written as data_path; in place of validation_split."""
    validation_samples: PositiveInt = 64
    """Held-out samples that the loss is computed on, at most; each at five noise levels."""
    validator: str | None = None
    """What samples and logs, of those that are installed. Default: the family's own."""
    validation_fps: Annotated[float, Field(gt=0)] = 16.0
    """Frames a second of the videos that are written."""

    # tracking
    trackers: tuple[str, ...] = ()
    """``wandb``, ``tensorboard``, or what plugins add. ``metrics.jsonl`` is always written."""
    tracker_project_name: str = "fvd"
    """The project that trackers log to."""
    wandb_run_name: str | None = None
    """The run's name in wandb."""
    log_every_steps: PositiveInt = 1
    """Metrics are logged every so many steps."""

    @field_validator("data_path", "validation_data_path")
    @classmethod
    def _data_path_is_given(cls, value: object) -> object:
        if value is not None and not value:
            raise ValueError("no data given; make it with `fvd data prepare CLIPS --family FAMILY --model MODEL --out FOLDER`")
        return value

    @field_validator("trackers", mode="before")
    @classmethod
    def _trackers_as_list(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("trackers")
    @classmethod
    def _none_is_no_tracker(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in value if name != "none")

    def data_sources(self) -> list[tuple[Path, int]]:
        """(folder, repeats), in the order given; repeats of 0 are left out."""
        return _sources(self.data_path)

    def validation_data_sources(self) -> list[tuple[Path, int]]:
        """The same of ``validation_data_path``."""
        return _sources(self.validation_data_path)

    @property
    def computes_held_out_loss(self) -> bool:
        """Whether the run file sets samples aside for validation."""
        return self.validation_split > 0 or self.validation_data_path is not None


def _sources(data_path: str | Sequence[str] | Mapping[str, int] | None) -> list[tuple[Path, int]]:
    pairs = {} if data_path is None else parse_data_path(data_path)
    return [(Path(folder).expanduser(), repeats) for folder, repeats in pairs.items() if repeats > 0]


def parse_data_path(value: str | Sequence[str] | Mapping[str, int]) -> dict[str, int]:
    """``training.data_path`` in any of its forms -> {folder: repeats}."""
    if isinstance(value, Mapping):
        return dict(value)
    folders: dict[str, int] = {}
    for entry in value.split(",") if isinstance(value, str) else value:
        folder, colon, repeats = entry.strip().rpartition(":")
        name, count = (folder, int(repeats)) if colon and repeats.isdigit() else (entry.strip(), 1)
        folders[name] = folders.get(name, 0) + count
    return folders


class RunConfig(StrictModel):
    """A whole run file, parsed. ``pipeline_config`` and ``method_config`` are the plugins' own models."""

    recipe: Recipe
    roles: dict[str, RoleConfig]
    training: TrainingConfig
    pipeline_config: SerializeAsAny[PipelineConfig]
    method_config: SerializeAsAny[MethodConfig]
    plugins: PluginsConfig = PluginsConfig()

    def role_family(self, role: str) -> str:
        return self.roles[role].family or self.recipe.family

    def optimizer_of(self, role: str) -> OptimizerSettings:
        """How ``role`` is optimized: what the file says of the role, then of all, then the method, then the defaults."""
        defaults = {name: getattr(self.training, key) for name, key in IN_TRAINING.items()}
        in_file = {name: defaults[name] for name, key in IN_TRAINING.items() if key in self.training.model_fields_set}
        of_role = given(self._role(role).optimizer or OptimizerConfig())
        of_method = given(self.method_config.role_defaults(role).optimizer)
        return OptimizerSettings(**{**defaults, **of_method, **in_file, **of_role})

    def ema_of(self, role: str) -> EmaSettings | None:
        """The average that is kept of the weights of ``role``, or None."""
        of_role, of_method = self._role(role).ema, self.method_config.role_defaults(role).ema
        if of_role is False or (of_role is None and of_method is None):
            return None
        chosen = of_role if isinstance(of_role, EmaConfig) else EmaConfig()
        return EmaSettings(**{**given(of_method or EmaConfig()), **given(chosen)})

    def _role(self, role: str) -> RoleConfig:
        return self.roles.get(role, RoleConfig())  # a role that the method makes itself need not be in the file

    def with_optimization_written_out(self) -> RunConfig:
        """The same run, its roles saying whole what `optimizer_of` and `ema_of` answer; frozen roles say nothing."""
        roles = dict(self.roles)
        for name, role in self.roles.items():
            if role.trainable:
                ema = self.ema_of(name)
                settings = asdict(self.optimizer_of(name))
                said = {key: value if takes_setting(settings["name"], key) else None for key, value in settings.items()}
                whole = {
                    "optimizer": OptimizerConfig.model_validate(said),
                    "ema": EmaConfig.model_validate(asdict(ema)) if ema else False,
                }
                roles[name] = role.model_copy(update=whole)
        return self.model_copy(update={"roles": roles})

    def as_document(self) -> dict[str, Any]:
        """Plain data that is itself a valid run file."""
        return self.model_dump(mode="json")
