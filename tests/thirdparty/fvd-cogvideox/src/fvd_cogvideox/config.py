"""``pipeline_config:`` of the family."""

import fvd


class CogVideoXConfig(fvd.PipelineConfig):
    flow_shift: float = 1.0
    """Moves the timesteps of training; CogVideoX's schedule holds its own shift already."""
