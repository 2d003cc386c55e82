"""Which of a role's weights to look at: as they are trained (raw), or their exponential moving average (EMA)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from fvd.errors import FvdError
from fvd.roles import RoleHandle
from fvd.validation.request import ValidationWeights

Weights = Literal["raw", "ema"]


def weights_to_show(handle: RoleHandle, wanted: ValidationWeights) -> list[Weights]:
    """Raw first. Raises FvdError where the average alone is wanted and the role has none."""
    if wanted == "both":
        return ["raw"] if handle.ema is None else ["raw", "ema"]
    if wanted == "ema" and handle.ema is None:
        raise FvdError(
            f"training.validation_weights is ema, and the role {handle.name} has no average",
            cure=f"Give it one, `roles.{handle.name}.ema: {{decay: 0.999}}`, or leave training.validation_weights out.",
        )
    return [wanted]


def in_use(handle: RoleHandle, weights: Weights) -> AbstractContextManager[None]:
    """The role's modules have these weights within the block; the trained ones are untouched after it."""
    if weights == "raw" or handle.ema is None:
        return nullcontext()
    return handle.ema.swapped_in()
