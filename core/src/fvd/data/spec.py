"""What a family says about its data. Core builds the loader from it; a family never opens a file of data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fvd.rng import to_device

ConditioningDropout = Literal["empty_prompt", "forbidden"]


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """One tensor of a sample, without its batch axis.

    axes: names of the axes, ``("C", "T", "H", "W")``. sizes: those that are fixed, ``{"C": 16}``.
    ragged: the name of an axis that may differ between samples and is padded by the loader (text tokens).
    source: the role this tensor plays, so that core can leave out what a method does not use.
    on_host: it stays on the CPU, in ``RawBatch.on_host``: for what a method picks a part of.
    """

    name: str
    axes: tuple[str, ...]
    sizes: dict[str, int]
    source: Literal["latents", "text", "trajectory", "other"] = "other"
    ragged: str | None = None
    required: bool = True
    on_host: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a sample holds. The kind of data (``parquet``) is said by the family's descriptor, `fvd.FamilySpec.dataset_kind`.

    text_padding_length: ragged text is zero-padded (or cut) to this many tokens; a mask comes along.
    conditioning_dropout: what the adapter puts in place of a dropped condition; ``forbidden`` refuses
        ``training_cfg_rate`` above 0.
    temporal_axis: the axis that ``training.num_latent_t`` crops.
    """

    fields: tuple[FieldSpec, ...]
    text_padding_length: int
    conditioning_dropout: ConditioningDropout = "empty_prompt"
    temporal_axis: str = "T"


@dataclass(frozen=True, kw_only=True)
class VideoGeometry:
    """The size of a video: pixels, and frames in time."""

    num_frames: int
    height: int
    width: int


@dataclass
class RawBatch:
    """What the loader yields: stacked tensors [B, ...] by field name, on the CPU.

    A ragged field ``n`` comes padded, with ``n_mask`` [B, L] (1 where there is a token, float32) in ``tensors``.
    dropped: [B] bool, samples whose conditioning this epoch drops; always on the CPU, so that asking costs no sync.
    info: one dictionary a sample: id, file_name, caption and the other metadata columns.
    on_host: the fields that say so, [B, ...]; always on the CPU.
    """

    tensors: dict[str, Tensor]
    dropped: Tensor
    info: list[dict[str, object]]
    on_host: dict[str, Tensor] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        return len(self.info)

    def to(self, device: torch.device) -> RawBatch:
        """The tensors on ``device``."""
        moved = {name: to_device(tensor, device) for name, tensor in self.tensors.items()}
        return RawBatch(moved, self.dropped, self.info, self.on_host)
