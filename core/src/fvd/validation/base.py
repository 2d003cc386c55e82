"""The contract of a validator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fvd.adapters import Adapter
from fvd.files import step_folder
from fvd.samplers.sampling import LoadedSampler
from fvd.validation.prompts import Prompt
from fvd.validation.request import ValidationRequest


@dataclass(frozen=True)
class Artifact:
    """One video that validation wrote. ``name``: what trackers show it under, the same at every step."""

    name: str
    path: Path
    caption: str


class ValidationStopped(Exception):
    """A validation was left because the run is to stop. The trainer saves, and a run that continues makes it again."""


def never_stopped() -> bool:
    """Where nobody can ask for a stop."""
    return False


@dataclass(frozen=True, kw_only=True)
class ValidatorContext:
    """What a validator is made from. latent_shape: (C, T, H, W) of the videos to make. output_dir: where its folders
    ``step-00000100`` go. fps: of the files it writes. stop_requested: whether somebody has asked the run to stop: a scheduler
    that needs the machine gives seconds, and a validation takes minutes (see `Validator.leave_if_stopped`)."""

    adapter: Adapter
    load_sampler: Callable[[str], LoadedSampler]
    prompts: list[Prompt]
    latent_shape: tuple[int, int, int, int]
    output_dir: Path
    fps: float
    stop_requested: Callable[[], bool] = never_stopped


class Validator(ABC):
    """Samples a role during training. A ``ValidatorSpec.target`` is a subclass; families name theirs."""

    def __init__(self, context: ValidatorContext) -> None:
        self.context = context

    @abstractmethod
    def on_train_start(self, request: ValidationRequest) -> None:
        """Once, before the first step, while encoders may be in memory: encode what every validation needs."""

    @abstractmethod
    def log_validation(self, step: int, request: ValidationRequest) -> list[Artifact]:
        """Sample and write into ``step_dir(step)``, which exists afterwards, whole. Training must not be disturbed: no
        draw from its generators, no change of a module's mode. Calls `leave_if_stopped` between two videos."""

    def leave_if_stopped(self) -> None:
        """Raise `ValidationStopped` where the run has been asked to stop; to be called between videos, and let through.

        What is unfinished must not remain under ``step_dir``, by which a resumed run knows what is done: call it inside
        `fvd.files.folder_written_aside`, and nothing does.
        """
        if self.context.stop_requested():
            raise ValidationStopped

    def step_dir(self, step: int) -> Path:
        return self.context.output_dir / step_folder(step)
