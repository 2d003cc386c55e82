"""The typed form of a run file (schema v2). Pydantic, strict: unknown keys are errors. No torch here.

`TrainingConfig` is infrastructure only. What an algorithm or a model kind needs lives in the method's and the family's
own models, subclasses of `MethodConfig` and `PipelineConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
)


class StrictModel(BaseModel):
    """Frozen, and no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """``max_train_steps: true`` would else be 1 step."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"must not be {str(value).lower()}")
        return value


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


class MethodConfig(StrictModel):
    """Base of every method's ``method_config:`` model."""


def _split_numbers(value: object) -> object:
    """``"8"`` and ``"4, 8"`` and ``8`` are lists, as existing files write them."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [value]
    return value


def _two_numbers(value: object) -> object:
    numbers = _split_numbers(value)
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 2:
        raise ValueError("needs two numbers, for example [0.9, 0.999]")
    return numbers


def _first_number(value: object) -> object:
    """``"5.0"`` is a number; of ``"3.0,5.0"`` existing programs use the first."""
    numbers = _split_numbers(value)
    return numbers[0] if isinstance(numbers, list) and numbers else value


Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], BeforeValidator(_two_numbers)]
StepCounts = Annotated[tuple[PositiveInt, ...], Field(min_length=1), BeforeValidator(_split_numbers)]
LrSchedulerName = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


class Recipe(StrictModel):
    family: str
    """Default family of every role."""
    method: str
    """The training algorithm."""


class RoleConfig(StrictModel):
    family: str | None = None
    """Kind of model; default ``recipe.family``."""
    path: str
    """A local folder in diffusers format, or a hub id."""
    trainable: bool | None = None
    """Whether this role is trained; default: what the method says of the role."""


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

    # optimizer (the method may override it for single roles)
    learning_rate: NonNegativeFloat = 1e-5
    """Of AdamW, after the warm-up."""
    betas: Betas = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: NonNegativeFloat = 0.01
    """Of AdamW."""
    lr_scheduler: LrSchedulerName = "constant"
    """How the learning rate decays after the warm-up, over the rest of the role's steps."""
    lr_warmup_steps: NonNegativeInt = 0
    """Steps of a role in which its learning rate rises linearly."""
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
    """Sample at step 0 and every so many steps; 0 = only at step 0 and at the end."""
    validation_dataset_file: str | None = None
    """Prompts: json, jsonl, csv or txt."""
    validation_sampling_steps: StepCounts = (50,)
    """Denoising steps; several numbers make several videos a prompt. A method with a ladder of its own ignores it."""
    validation_guidance_scale: Annotated[NonNegativeFloat, BeforeValidator(_first_number)] = 5.0
    """Standard convention, 1.0 = none."""
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

    @field_validator("data_path")
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
        pairs = {} if self.data_path is None else parse_data_path(self.data_path)
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

    def as_document(self) -> dict[str, Any]:
        """Plain data that is itself a valid run file."""
        return self.model_dump(mode="json")
