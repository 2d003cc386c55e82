"""The parquet format of prepared data, and how a tensor lies in it.

A tensor ``n`` is three columns: ``n_bytes`` (C-contiguous, little-endian), ``n_shape`` and ``n_dtype`` (numpy's name of
the dtype). A tensor that a row does not have is ``b""``, ``[]``, ``""``. The schemas are those of FastVideo, field for
field and in that order, so that data prepared by either program trains in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

from fvd.errors import DataError

TRIPLET = ("bytes", "shape", "dtype")

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
"""Values of ``n_dtype``; a leading ``torch.`` is accepted too."""


def triplet(name: str) -> list[str]:
    """The three columns of a tensor."""
    return [f"{name}_{part}" for part in TRIPLET]


def _tensor_fields(name: str) -> list[pa.Field]:
    types = (pa.binary(), pa.list_(pa.int64()), pa.string())
    return [pa.field(column, kind) for column, kind in zip(triplet(name), types, strict=True)]


T2V_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        *_tensor_fields("vae_latent"),  # [C, T, H, W], the VAE's mean, not normalised
        *_tensor_fields("text_embedding"),  # [L, D], L tokens without padding
        pa.field("file_name", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("media_type", pa.string()),  # "video"
        pa.field("width", pa.int64()),  # pixels, after resizing
        pa.field("height", pa.int64()),
        pa.field("num_frames", pa.int64()),  # LATENT frames
        pa.field("duration_sec", pa.float64()),
        pa.field("fps", pa.float64()),
    ]
)
"""Text-to-video: latents and text."""

TEXT_ONLY_SCHEMA = pa.schema([pa.field("id", pa.string()), *_tensor_fields("text_embedding"), pa.field("caption", pa.string())])
"""Prompts alone, for training without videos."""

TRAJECTORY_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        *_tensor_fields("text_embedding"),
        *_tensor_fields("trajectory_latents"),  # [S, C, T, H, W], as the sampler has them: normalised
        *_tensor_fields("trajectory_timesteps"),  # [S], see `fvd.data.trajectories`
        pa.field("file_name", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("media_type", pa.string()),  # "text"
    ]
)
"""Points of a teacher's solutions, from noise to x0."""


def parse_dtype(name: str) -> torch.dtype | None:
    """The dtype that a ``_dtype`` column names, or None."""
    return DTYPES.get(name.removeprefix("torch."))


def pack_tensor(name: str, tensor: Tensor) -> dict[str, object]:
    """The three cells of a tensor whose dtype numpy knows."""
    array = tensor.detach().cpu().contiguous().numpy()
    return {f"{name}_bytes": array.tobytes(), f"{name}_shape": list(array.shape), f"{name}_dtype": str(array.dtype)}


def unpack_tensor(data: bytes | memoryview, shape: Sequence[int], dtype_name: str) -> Tensor:
    """The inverse of `pack_tensor`. Raises DataError for an unknown dtype or a wrong number of bytes."""
    dtype = parse_dtype(dtype_name)
    if dtype is None:
        raise DataError(f"unknown dtype {dtype_name!r} (known: {', '.join(DTYPES)})")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected or expected == 0:
        raise DataError(f"{len(data)} bytes where {dtype_name} of shape {list(shape)} has {expected}")
    # bytearray: torch wants memory that it may write to, and the copy frees the tensor from the row group's buffer
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(tuple(shape))
