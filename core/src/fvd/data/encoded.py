"""What a family's encoders return, checked against their contract before it is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from fvd.errors import PluginError
from fvd.families import Encoders


class CheckedEncoders:
    """One clip or caption at a time through `Encoders`. Raises PluginError that blames the family for what is not as
    promised: it would be stored, and break training much later."""

    def __init__(self, encoders: Encoders, family: str) -> None:
        self._encoders = encoders
        self._family = family

    def latent(self, video: Tensor) -> Tensor:
        """[3, T, H, W] in [0, 1] -> [C, T', H', W'], float32, on the CPU."""
        latents = self._encoders.encode_video(video[None])
        promise = "one float32 tensor [B, C, T, H, W] on the CPU for [B, 3, T, H, W]"
        if not _is_float32(latents, rank=5) or latents.shape[0] != 1:
            raise self._broken(f"encode_video must return {promise}; for B = 1 it returned {_describe(latents)}")
        return latents[0]

    def embedding(self, caption: str) -> Tensor:
        """[L, D], float32, on the CPU."""
        embeddings = self._encoders.encode_text([caption])
        promise = "a list with one float32 tensor [L, D] on the CPU for each caption"
        if not isinstance(embeddings, (list, tuple)):
            raise self._broken(f"encode_text must return {promise}; it returned {_describe(embeddings)}")
        if len(embeddings) != 1 or not _is_float32(embeddings[0], rank=2):
            found = ", ".join(_describe(embedding) for embedding in embeddings) or "nothing"
            raise self._broken(f"encode_text must return {promise}; for one caption the list holds {found}")
        embedding: Tensor = embeddings[0]
        return embedding

    def _broken(self, what: str) -> PluginError:
        name = f"{type(self._encoders).__module__}.{type(self._encoders).__qualname__}"
        return PluginError(
            f"the encoders of the family {self._family} ({name}) break their contract: {what}",
            cure="Report it to the authors of the family.",
        )


def _is_float32(value: object, *, rank: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.ndim == rank
        and value.dtype == torch.float32
        and value.device.type == "cpu"
        and value.numel() > 0
    )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}, {str(value.dtype).removeprefix('torch.')}, on {value.device}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"
