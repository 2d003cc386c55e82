"""The tensors of a checkpoint: one folder of torch.distributed.checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from fvd.errors import CheckpointError

TENSORS = "state"


def stored_names(checkpoint: Path) -> list[str]:
    """Of the tensors of a checkpoint folder."""
    return list(dcp.FileSystemReader(checkpoint / TENSORS).read_metadata().state_dict_metadata)


def save_tensors(tensors: dict[str, Any], checkpoint: Path) -> None:
    """Write them into a checkpoint folder. Raises OSError or CheckpointException."""
    with warnings.catch_warnings():
        # "assuming the intent is to save in a single process": it is.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(checkpoint / TENSORS, sync_files=True), no_dist=True)


def load_tensors(tensors: dict[str, Any], path: Path) -> None:
    """Fill them from the checkpoint folder ``path``. Raises CheckpointError where it is damaged or has others."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=dcp.FileSystemReader(path / TENSORS), no_dist=True)
    except (CheckpointException, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be loaded: {reason(error)}",
            cure="It is damaged, or made with other models or another method_config. Without it, an older one counts; "
            "sample and export take --step.",
        ) from error


def total_bytes(value: Any) -> int:
    """Of all tensors in nested dicts."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(total_bytes(item) for item in value.values()) if isinstance(value, dict) else 0


def reason(error: BaseException) -> str:
    """The first real cause inside torch's collected failures."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
