"""What notification hooks are told. Light: a plugin's hook module may import it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fvd.validation.base import Artifact


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step: its number, counted from 1, and its metrics, on the host."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class ValidationEvent:
    """The videos of a validation, and the held-out loss with its parts."""

    step: int
    artifacts: list[Artifact]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointEvent:
    step: int
    path: Path


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. ``stopped``: by a signal, after a checkpoint."""

    status: Literal["finished", "stopped", "failed"]
    step: int
    signal_number: int | None = None
