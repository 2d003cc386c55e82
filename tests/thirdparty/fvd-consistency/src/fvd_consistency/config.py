from typing import Annotated

from pydantic import Field, PositiveFloat

import fvd


class ConsistencyConfig(fvd.MethodConfig):
    gap: PositiveFloat = 100.0
    """Timesteps between the two points that have to agree."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Of the average of the student that is the target."""
    ladder: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1000.0, 500.0)
    """Timesteps at which the student is sampled, descending."""

    def sampling_ladder(self) -> fvd.SamplingLadder:
        return fvd.SamplingLadder(sampler_kind="sde", timesteps=self.ladder)
