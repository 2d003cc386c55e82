"""Captions of the toy: a text is a weight for each mode of the mixture.

"mode 3" is that mode, "mode 1 mode 4" both in equal parts, the empty text all of them. Any other text means one mode, the
same for the same text: so prompts that were written for videos do something.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from fvd.errors import FvdError
from fvd.rng import derive_seed

_MODE = re.compile(r"\bmode (\d+)\b")


def caption_of(modes: Sequence[int]) -> str:
    return " ".join(f"mode {mode}" for mode in modes)


def modes_of(caption: str, count: int) -> list[int]:
    """The modes that a text means, out of ``count``. Raises FvdError for a mode that there is not."""
    named = sorted({int(number) for number in _MODE.findall(caption)})
    if named and named[-1] >= count:
        raise FvdError(f"the caption {caption!r} names mode {named[-1]}", cure=f"The modes are 0 to {count - 1}.")
    if not caption.strip():
        return list(range(count))
    return named or [derive_seed("toy caption", caption.strip()) % count]


def embed(captions: Sequence[str], count: int) -> Tensor:
    """[B, K], float32: the weight of each mode; they sum to 1."""
    embeddings = torch.zeros(len(captions), count)
    for row, caption in enumerate(captions):
        modes = modes_of(caption, count)
        embeddings[row, modes] = 1 / len(modes)
    return embeddings


def mode_weights(embeddings: Tensor) -> Tensor:
    """Embeddings [B, K] as weights: at least 0, with sum 1. An embedding of zeros says nothing and means all modes."""
    weights = embeddings.clamp(min=0)
    weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, 1.0)
    return weights / weights.sum(dim=1, keepdim=True)
