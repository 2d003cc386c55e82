"""What plugin authors import: ``import fvd``.

Every name below is loaded on first use (PEP 562), so ``import fvd`` costs almost nothing and never loads torch,
numpy, yaml or pydantic. A plugin's light module (the one that its entry point names) uses only the first group.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS = {
    # light: hooks and descriptors
    "hookimpl": "fvd.hookspecs",
    "CommandSpec": "fvd.specs",
    "DatasetKindSpec": "fvd.specs",
    "Example": "fvd.specs",
    "FEATURE_PRIMITIVES": "fvd.specs",
    "FamilySpec": "fvd.specs",
    "MethodSpec": "fvd.specs",
    "MovedKey": "fvd.specs",
    "RoleNeeds": "fvd.specs",
    "SAMPLING_PRIMITIVES": "fvd.specs",
    "SCHEDULE_PRIMITIVES": "fvd.specs",
    "SamplerSpec": "fvd.specs",
    "TEXT_TO_VIDEO": "fvd.specs",
    "TrackerSpec": "fvd.specs",
    "ValidatorSpec": "fvd.specs",
    "DataError": "fvd.errors",
    "FvdError": "fvd.errors",
    "ModelError": "fvd.errors",
    "PluginError": "fvd.errors",
    "Problem": "fvd.errors",
    "CheckpointEvent": "fvd.events",
    "RunOutcome": "fvd.events",
    "StepEvent": "fvd.events",
    "ValidationEvent": "fvd.events",
    "Passes": "fvd.accounting",
    "HealthRule": "fvd.health",
    # needs pydantic
    "CheckContext": "fvd.config.check",
    "EmaConfig": "fvd.config.optimization",
    "OptimizerConfig": "fvd.config.optimization",
    "RoleDefaults": "fvd.config.optimization",
    "MethodConfig": "fvd.config.models",
    "SamplingLadder": "fvd.config.models",
    "PipelineConfig": "fvd.config.models",
    "RoleConfig": "fvd.config.models",
    "RunConfig": "fvd.config.models",
    "TrainingConfig": "fvd.config.models",
    "folder_written_aside": "fvd.files",
    # needs torch
    "Adapter": "fvd.adapters",
    "Batch": "fvd.adapters",
    "FlowMatchingAdapter": "fvd.adapters",
    "RoleView": "fvd.adapters",
    "BlockFeatures": "fvd.features",
    "DiffusionAdapter": "fvd.diffusion",
    "DiffusionSchedule": "fvd.diffusion",
    "Components": "fvd.components",
    "TextConditioning": "fvd.components",
    "TextToVideo": "fvd.textvideo",
    "TextToVideoAdapter": "fvd.textvideo",
    "TextToVideoDiffusionAdapter": "fvd.textvideo",
    "TextToVideoFamily": "fvd.textvideo",
    "DataSpec": "fvd.data.spec",
    "FieldSpec": "fvd.data.spec",
    "RawBatch": "fvd.data.spec",
    "VideoGeometry": "fvd.data.spec",
    "ClipPlan": "fvd.families",
    "Encoders": "fvd.families",
    "Family": "fvd.families",
    "FamilyContext": "fvd.families",
    "Loss": "fvd.methods",
    "Method": "fvd.methods",
    "WeightedMean": "fvd.metrics",
    "per_bin": "fvd.metrics",
    "OptimizerSpec": "fvd.optim",
    "RoleHandle": "fvd.roles",
    "RoleManager": "fvd.roles",
    "StepRandom": "fvd.rng",
    "GuidedModel": "fvd.samplers.guidance",
    "sample_latents": "fvd.samplers.sampling",
    "write_video": "fvd.data.video",
    "Tracker": "fvd.trackers.base",
    "TrackerContext": "fvd.trackers.base",
    "Artifact": "fvd.validation.base",
    "Validator": "fvd.validation.base",
    "ValidatorContext": "fvd.validation.base",
    "GuidedColumn": "fvd.validation.request",
    "PanelRequest": "fvd.validation.request",
    "SamplingPlan": "fvd.validation.request",
    "ValidationRequest": "fvd.validation.request",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> object:
    try:
        module = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module 'fvd' has no attribute {name!r}") from None
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from fvd.accounting import Passes as Passes
    from fvd.adapters import Adapter as Adapter
    from fvd.adapters import Batch as Batch
    from fvd.adapters import FlowMatchingAdapter as FlowMatchingAdapter
    from fvd.adapters import RoleView as RoleView
    from fvd.components import Components as Components
    from fvd.components import TextConditioning as TextConditioning
    from fvd.config.check import CheckContext as CheckContext
    from fvd.config.models import MethodConfig as MethodConfig
    from fvd.config.models import PipelineConfig as PipelineConfig
    from fvd.config.models import RoleConfig as RoleConfig
    from fvd.config.models import RunConfig as RunConfig
    from fvd.config.models import SamplingLadder as SamplingLadder
    from fvd.config.models import TrainingConfig as TrainingConfig
    from fvd.config.optimization import EmaConfig as EmaConfig
    from fvd.config.optimization import OptimizerConfig as OptimizerConfig
    from fvd.config.optimization import RoleDefaults as RoleDefaults
    from fvd.data.spec import DataSpec as DataSpec
    from fvd.data.spec import FieldSpec as FieldSpec
    from fvd.data.spec import RawBatch as RawBatch
    from fvd.data.spec import VideoGeometry as VideoGeometry
    from fvd.data.video import write_video as write_video
    from fvd.diffusion import DiffusionAdapter as DiffusionAdapter
    from fvd.diffusion import DiffusionSchedule as DiffusionSchedule
    from fvd.errors import DataError as DataError
    from fvd.errors import FvdError as FvdError
    from fvd.errors import ModelError as ModelError
    from fvd.errors import PluginError as PluginError
    from fvd.errors import Problem as Problem
    from fvd.events import CheckpointEvent as CheckpointEvent
    from fvd.events import RunOutcome as RunOutcome
    from fvd.events import StepEvent as StepEvent
    from fvd.events import ValidationEvent as ValidationEvent
    from fvd.families import ClipPlan as ClipPlan
    from fvd.families import Encoders as Encoders
    from fvd.families import Family as Family
    from fvd.families import FamilyContext as FamilyContext
    from fvd.features import BlockFeatures as BlockFeatures
    from fvd.files import folder_written_aside as folder_written_aside
    from fvd.health import HealthRule as HealthRule
    from fvd.hookspecs import hookimpl as hookimpl
    from fvd.methods import Loss as Loss
    from fvd.methods import Method as Method
    from fvd.metrics import WeightedMean as WeightedMean
    from fvd.metrics import per_bin as per_bin
    from fvd.optim import OptimizerSpec as OptimizerSpec
    from fvd.rng import StepRandom as StepRandom
    from fvd.roles import RoleHandle as RoleHandle
    from fvd.roles import RoleManager as RoleManager
    from fvd.samplers.guidance import GuidedModel as GuidedModel
    from fvd.samplers.sampling import sample_latents as sample_latents
    from fvd.specs import FEATURE_PRIMITIVES as FEATURE_PRIMITIVES
    from fvd.specs import SAMPLING_PRIMITIVES as SAMPLING_PRIMITIVES
    from fvd.specs import SCHEDULE_PRIMITIVES as SCHEDULE_PRIMITIVES
    from fvd.specs import TEXT_TO_VIDEO as TEXT_TO_VIDEO
    from fvd.specs import CommandSpec as CommandSpec
    from fvd.specs import DatasetKindSpec as DatasetKindSpec
    from fvd.specs import Example as Example
    from fvd.specs import FamilySpec as FamilySpec
    from fvd.specs import MethodSpec as MethodSpec
    from fvd.specs import MovedKey as MovedKey
    from fvd.specs import RoleNeeds as RoleNeeds
    from fvd.specs import SamplerSpec as SamplerSpec
    from fvd.specs import TrackerSpec as TrackerSpec
    from fvd.specs import ValidatorSpec as ValidatorSpec
    from fvd.textvideo import TextToVideo as TextToVideo
    from fvd.textvideo import TextToVideoAdapter as TextToVideoAdapter
    from fvd.textvideo import TextToVideoDiffusionAdapter as TextToVideoDiffusionAdapter
    from fvd.textvideo import TextToVideoFamily as TextToVideoFamily
    from fvd.trackers.base import Tracker as Tracker
    from fvd.trackers.base import TrackerContext as TrackerContext
    from fvd.validation.base import Artifact as Artifact
    from fvd.validation.base import Validator as Validator
    from fvd.validation.base import ValidatorContext as ValidatorContext
    from fvd.validation.request import GuidedColumn as GuidedColumn
    from fvd.validation.request import PanelRequest as PanelRequest
    from fvd.validation.request import SamplingPlan as SamplingPlan
    from fvd.validation.request import ValidationRequest as ValidationRequest
