"""Families: build time. How one kind of model is loaded, assembled, prepared for and exported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fvd.adapters import Adapter
from fvd.data.spec import DataSpec, VideoGeometry
from fvd.roles import RoleHandle, RoleManager

if TYPE_CHECKING:
    from fvd.config.models import PipelineConfig, RoleConfig


@dataclass(frozen=True, kw_only=True)
class FamilyContext:
    """What core hands to a family when it makes one.

    config: ``pipeline_config`` as parsed by the family's own model.
    components_path: the folder or hub id that the shared parts come from (VAE, text encoder, tokenizer, scheduler):
        ``pipeline_config.components_path``, or else the path of the first role in the run file.
    geometry: the size of the videos of this run, where the run file gives one.
    latent_frames: ``training.num_latent_t`` where given: longer data, and longer latents of ``geometry``, are cropped to it.
    conditioning_dropout_rate: above 0, `Adapter.on_train_start` must prepare what replaces a dropped condition.
    autocast_dtype: the compute dtype of the networks; None = float32 throughout. Frozen roles may be stored in it.
    """

    config: PipelineConfig
    components_path: str
    device: torch.device
    geometry: VideoGeometry | None = None
    latent_frames: int | None = None
    conditioning_dropout_rate: float = 0.0
    autocast_dtype: torch.dtype | None = None


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """How clips of a dataset are cut: frames a second to sample at, and the size to crop and resize to."""

    fps: float
    geometry: VideoGeometry


class Encoders(ABC):
    """What `fvd data prepare` needs of a family: pixels to latents, text to embeddings."""

    @property
    @abstractmethod
    def default_plan(self) -> ClipPlan:
        """The clips that this model was made for; the command line may override each part."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Identifies the weights and settings that the encodings depend on: equal digests, equal encodings."""

    @abstractmethod
    def check_geometry(self, geometry: VideoGeometry) -> None:
        """Raise FvdError that says which sizes are allowed (multiples of 16, 4k + 1 frames)."""

    @abstractmethod
    def encode_video(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] in [0, 1] -> the VAE's mean [B, C, T', H', W'], float32, on the CPU, NOT normalised."""

    @abstractmethod
    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        """One [L, D] float32 CPU tensor a caption; L is its number of tokens, without padding."""


class Family(ABC):
    """One object per family and run. Core composes what it returns; a family runs no step and opens no data."""

    def __init__(self, context: FamilyContext) -> None:
        self.context = context

    @abstractmethod
    def load_role(self, name: str, spec: RoleConfig) -> RoleHandle:
        """Load the networks of one role onto the context's device, ``requires_grad`` set from ``spec.trainable`` (always
        said by now): float32 master weights where it is trained. Raises ModelError for a folder of another kind."""

    @abstractmethod
    def build_adapter(self, roles: RoleManager) -> Adapter:
        """The run-time operations on these roles. Checks that roles agree on what they share (latent channels, text
        width); raises ModelError that names both."""

    @abstractmethod
    def data_spec(self) -> DataSpec:
        """What training data for this family looks like."""

    @abstractmethod
    def build_encoders(self) -> Encoders:
        """For `fvd data prepare`. May load VAE and text encoder lazily."""

    def latent_shape(self, geometry: VideoGeometry) -> tuple[int, int, int, int] | None:
        """`Adapter.latent_shape`, where it can be told before weights are loaded, so that data of another size are refused
        early. Default: None, it cannot."""
        return None

    def shard_units(self, handle: RoleHandle) -> list[nn.Module]:
        """The repeated blocks of a role: what is recomputed under ``enable_gradient_checkpointing_type: full``."""
        return []

    @abstractmethod
    def export(self, handle: RoleHandle, out_dir: Path, format: str) -> None:
        """Write a role into the existing empty folder ``out_dir`` in ``format`` (``diffusers``). Raises FvdError
        that lists the formats for an unknown one."""
