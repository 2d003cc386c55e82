"""``method_config:`` of the method finetune. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

import fvd
from fvd.accounting import Passes

TimestepDensity = Literal["uniform", "logit_normal", "mode"]


class FinetuneConfig(fvd.MethodConfig):
    """Where on the noise schedule to train. The flow shift of ``pipeline_config`` is applied after the density."""

    timestep_density: TimestepDensity = "uniform"
    """Density of u in [0, 1); large u is LOW noise, before the shift: sigma = shift(1 - u)."""
    logit_mean: float = 0.0
    """logit_normal: u = sigmoid(N(logit_mean, logit_std^2)). A positive mean favours low noise."""
    logit_std: NonNegativeFloat = 1.0
    """logit_normal: 0 trains on one noise level."""
    mode_scale: Annotated[float, Field(ge=-1, le=2 / (math.pi - 2))] = 1.29
    """mode: 0 is uniform; positive favours the middle, negative the ends. From -1 to 1.7519: beyond, u turns round
    on its way from 1 to 0, and leaves [0, 1]."""
    attn_kind: Literal["dense", "vsa"] = "dense"
    """Kind of attention of the student; dense where the family has no other."""

    def expected_passes(self, run: fvd.RunConfig) -> Mapping[str, Passes]:
        """One forward with gradient a sample."""
        return {"student": Passes(forwards=1, backwards=1)}
