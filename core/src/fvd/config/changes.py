"""Two run files compared key by key, as plain data. Light: the standard library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAY_CHANGE = frozenset(
    f"training.{key}"
    for key in (
        *("output_dir", "max_train_steps", "dataloader_num_workers", "enable_gradient_checkpointing_type"),
        *("training_state_checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint"),
        *("log_validation", "validation_steps", "validation_dataset_file", "validation_sampling_steps"),
        *("validation_guidance_scale", "validation_fps", "validator", "trackers", "tracker_project_name", "wandb_run_name"),
        *("log_every_steps", "validation_weights", "validation_data_path", "validation_samples"),
    )
) | {"pipeline_config.sampler_kind", "plugins.only", "plugins.require"}
"""Keys that change no number of training (``max_train_steps`` does where the learning rate decays: a longer schedule)."""


ORDERS_DATA = frozenset({"training.data_path", "training.seed"})
"""Keys that decide which samples come, and in which order; what is held out shows in the loader's fingerprint."""

_EMA = re.compile(r"roles\.[^.]+\.ema(\..+)?")
_WHERE_IT_IS = frozenset({"training.output_dir", "training.resume_from_checkpoint"})
_WEIGHTS = re.compile(r"recipe\..+|roles\.[^.]+\.(family|path|trainable)")
_OPTIMIZER_STATE = re.compile(r"roles\.([^.]+)\.optimizer\.(name|arguments)(\..+)?")


def may_change(key: str) -> bool:
    """Whether a run can be continued with another value: an average of weights moves no weight."""
    return key in MAY_CHANGE or _EMA.fullmatch(key) is not None


def decides_weights(key: str) -> bool:
    """Whether saved weights may not fit, or mean nothing, with another value."""
    return _WEIGHTS.fullmatch(key) is not None


def role_of_optimizer_state(key: str) -> str | None:
    """The role whose optimizer's state does not fit with another value; None for a key that decides no such thing."""
    found = _OPTIMIZER_STATE.fullmatch(key)
    return found[1] if found else None


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values; but where the run lies, and where it continues from."""
    before, after = flatten(old), flatten(new)
    keys = [key for key in (*before, *(k for k in after if k not in before)) if key not in _WHERE_IT_IS]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"training": {"seed": 1}}`` -> ``{"training.seed": 1}``; the folders of data stay one value."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and dotted not in ("training.data_path", "training.validation_data_path"):
            flat |= flatten(value, f"{dotted}.")
        else:
            flat[dotted] = value
    return flat
