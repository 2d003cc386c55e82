"""Older spellings and keys of schema-v2 files in the field: accepted with a warning that says where they went, or that
they have no effect yet. What belongs to a method is that method's business (`fvd.MovedKey` in its descriptor)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fvd.config.yaml_lines import Document, KeyPath
from fvd.errors import Problem, Severity
from fvd.specs import MethodSpec, MovedKey

_ONE_PROCESS = "this version trains in one process on one device"
_NOT_YET = "not implemented yet"
_OTHER_ALGORITHM = "a setting of an algorithm that this run does not use"
_UPSTREAM = "fvd decides this itself"

NO_EFFECT: dict[str, str] = {
    **dict.fromkeys(("num_gpus", "tp_size", "sp_size", "hsdp_replicate_dim", "hsdp_shard_dim", "dist_timeout"), _ONE_PROCESS),
    **dict.fromkeys(("fsdp_sharding_startegy", "fsdp_sharding_strategy", "train_sp_batch_size"), _ONE_PROCESS),
    **dict.fromkeys(("VSA_sparsity", "VSA_decay_rate", "VSA_decay_interval_steps"), "sparse attention is " + _NOT_YET),
    **dict.fromkeys(("use_ema", "ema_decay", "ema_start_step"), "an EMA is asked for in roles.<role>.ema"),
    **dict.fromkeys(("log_visualization", "visualization_steps", "profiler"), _NOT_YET),
    "weight_only_checkpointing_steps": "checkpoints hold everything; `fvd export` writes weights alone",
    "num_train_epochs": "a run's length is training.max_train_steps",
    "validation_preprocessed_path": "validation prompts come from training.validation_dataset_file",
    "validation_num_samples": "every prompt of training.validation_dataset_file is sampled",
    "scale_lr": "training.learning_rate is used as it is",
    "allow_tf32": _UPSTREAM,
    "preprocessed_data_type": "the columns of the data say what they are",
    "text_encoder_cpu_offload": "text encoder and VAE are in memory only while they are used",
    "vae_cpu_offload": "text encoder and VAE are in memory only while they are used",
    "image_encoder_cpu_offload": "text encoder and VAE are in memory only while they are used",
    **dict.fromkeys(
        (
            "mode",
            "inference_mode",
            "workload_type",
            "pin_cpu_memory",
            "dit_cpu_offload",
            "use_fsdp_inference",
            "dit_layerwise_offload",
        ),
        _UPSTREAM,
    ),
    **dict.fromkeys(("group_frame", "group_resolution", "selective_checkpointing", "enable_torch_compile"), _NOT_YET),
    **dict.fromkeys(
        ("model_path", "pretrained_model_name_or_path", "real_score_model_path", "fake_score_model_path"),
        "models are given by roles.<role>.path",
    ),
    **dict.fromkeys(
        (
            *("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "precondition_outputs", "moba_config"),
            *("generator_update_interval", "dfake_gen_update_ratio", "min_timestep_ratio", "max_timestep_ratio"),
            *("real_score_guidance_scale", "fake_score_learning_rate", "fake_score_lr_scheduler", "fake_score_betas"),
            *("simulate_generator_forward", "warp_denoising_step", "num_frame_per_block", "independent_first_frame"),
            *("enable_gradient_masking", "gradient_mask_last_n_frames", "same_step_across_blocks", "last_step_only"),
            *("context_noise", "num_euler_timesteps", "not_apply_cfg_solver", "distill_cfg", "scheduler_type"),
            *("linear_quadratic_threshold", "linear_range", "multi_phased_distill_schedule", "pred_decay_weight"),
            *("pred_decay_type", "hunyuan_teacher_disable_cfg", "ltx2_first_frame_conditioning_p", "boundary_ratio"),
        ),
        _OTHER_ALGORITHM,
    ),
}
"""Keys under ``training:`` that have no effect, and why."""

RENAMED: dict[str, str] = {
    "flow_shift": "pipeline_config.flow_shift",
    "sampler_kind": "pipeline_config.sampler_kind",
    "project_name": "training.tracker_project_name",
    "run_name": "training.wandb_run_name",
}
"""Keys under ``training:`` that are spelt or placed otherwise today."""

_REFUSED: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "lora_training": (bool, "LoRA training is not implemented yet", "Remove the LoRA keys to train all weights."),
    "lora_rank": (bool, "LoRA training is not implemented yet", "Remove the LoRA keys to train all weights."),
    "lora_alpha": (bool, "LoRA training is not implemented yet", "Remove the LoRA keys to train all weights."),
    **dict.fromkeys(
        ("dit_precision", "master_weight_type"),
        (
            lambda value: str(value) not in ("fp32", "float32", ""),
            "master weights are float32: in bf16 most updates of a small learning rate round to nothing",
            "Remove it; training.mixed_precision: bf16 gives bf16 compute.",
        ),
    ),
}
"""Keys under ``training:`` whose meaning would be lost in silence; refused when they ask for something."""

_VALUES: dict[str, dict[object, object]] = {
    "enable_gradient_checkpointing_type": {"ops": "full", "block_skip": "full", "": None, "none": None},
    "mixed_precision": {"": "no", "fp16": "bf16"},
    "resume_from_checkpoint": {None: ""},
}

ROLE_NO_EFFECT = {"disable_custom_init_weights": "weights are loaded as they are in the folder"}
"""Keys under ``roles.<role>:`` that have no effect, and why."""


def migrate(document: Document, file: str, method: MethodSpec | None, known_training_keys: Collection[str]) -> list[Problem]:
    """Move and drop older keys in ``document``; what was done, as warnings. Unknown keys stay for the schema to refuse."""
    migration = _Migration(document, file)
    migration.roles()
    if method is not None:
        migration.method_keys(method)
    migration.training(known_training_keys)
    return migration.problems


class _Migration:
    def __init__(self, document: Document, file: str) -> None:
        self.document = document
        self.file = file
        self.problems: list[Problem] = []

    def roles(self) -> None:
        for role, settings in _mapping(self.document.data.get("roles")).items():
            for key, reason in ROLE_NO_EFFECT.items():
                if key in _mapping(settings):
                    del settings[key]
                    self.report(("roles", role, key), f"has no effect: {reason}")

    def method_keys(self, method: MethodSpec) -> None:
        """A key under ``training:`` always moves; under ``method_config:`` it does where the spelling changed."""
        for section in ("training", "method_config"):
            for key, moved in method.moved_keys.items():
                if key in _mapping(self.document.data.get(section)) and (section, key) != ("method_config", moved.to):
                    self.move(section, key, moved)

    def move(self, section: str, key: str, moved: MovedKey) -> None:
        value = _translate(self.document.data[section].pop(key), moved.values)
        path = tuple(moved.to.split(".")) if "." in moved.to else ("method_config", moved.to)
        in_the_way = self.put(path, value)
        if in_the_way:
            self.report((section, key), f"has no effect: {in_the_way}")
            return
        self.document.places[path] = self.document.locate((section, key), self.file)
        self.report((section, key), f"is accepted, but its place is {'.'.join(path)}")

    def put(self, path: KeyPath, value: object) -> str:
        """Set the key at ``path``, whose sections are made where they are not there; answers what stands in the way. ``true``
        in the place of a section is that section with its defaults."""
        if path[0] == "roles" and path[1] not in _mapping(self.document.data.get("roles")):
            return f"the file names no role {path[1]}"
        section = self.document.data
        for depth, name in enumerate(path[:-1], start=1):
            if section.get(name) in (None, True):
                section[name] = {}
            if not isinstance(section[name], dict):
                return f"{'.'.join(path[:depth])} is {str(section[name]).lower()}"
            section = section[name]
        if path[-1] in section:
            return f"{'.'.join(path)} is given too and wins"
        section[path[-1]] = value
        return ""

    def training(self, known: Collection[str]) -> None:
        training = _mapping(self.document.data.get("training"))
        for key in list(training):
            if key in _VALUES:
                self.translate_value(key)
            elif key in known:
                continue
            elif key in RENAMED:
                self.rename(key)
            elif key in _REFUSED:
                self.refuse(key)
            elif key in NO_EFFECT:
                del training[key]
                self.report(("training", key), f"has no effect: {NO_EFFECT[key]}")

    def translate_value(self, key: str) -> None:
        training = self.document.data["training"]
        old = training[key]
        training[key] = _translate(old, _VALUES[key])
        if training[key] != old and old not in (None, ""):
            self.report(("training", key), f"{old!r} is taken as {training[key]!r}")

    def rename(self, key: str) -> None:
        section, _, name = RENAMED[key].partition(".")
        value = self.document.data["training"].pop(key)
        self.section(section).setdefault(name, value)
        self.document.places.setdefault((section, name), self.document.locate(("training", key), self.file))
        self.report(("training", key), f"is accepted, but its place is {RENAMED[key]}")

    def refuse(self, key: str) -> None:
        asks_for_something, message, cure = _REFUSED[key]
        value = self.document.data["training"].pop(key)
        if asks_for_something(value):
            self.report(("training", key), message, cure=cure, severity="error")
        else:
            self.report(("training", key), "has no effect")

    def section(self, name: str) -> dict[str, Any]:
        if not isinstance(self.document.data.get(name), dict):
            self.document.data[name] = {}
        return self.document.data[name]

    def report(self, key: tuple[str, ...], message: str, *, cure: str = "", severity: Severity = "warning") -> None:
        file, line = self.document.locate(key, self.file)
        self.problems.append(Problem(message=message, key=".".join(key), file=file, line=line, cure=cure, severity=severity))


def _mapping(value: object) -> dict[str, Any]:
    """``value`` if it is a mapping (and so may be changed in place), else nothing: the schema reports the rest."""
    return value if isinstance(value, dict) else {}


def _translate(value: Any, values: Mapping[object, object]) -> Any:
    hashable = not isinstance(value, (list, dict))
    return values[value] if hashable and value in values else value
