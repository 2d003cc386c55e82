"""``pipeline_config:`` of the toy families. No torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat

import fvd


class ToyConfig(fvd.PipelineConfig):
    """The mixture: ``modes`` isotropic Gaussians, evenly spaced on a circle, of equal weight."""

    modes: Annotated[int, Field(ge=2, le=64)] = 8
    """Number of Gaussians."""
    radius: PositiveFloat = 2.0
    """Of the circle that their means lie on."""
    std: PositiveFloat = 0.15
    """Standard deviation of each."""
