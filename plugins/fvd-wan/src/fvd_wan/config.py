"""``pipeline_config:`` of the Wan family. Pydantic only; no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

import fvd

WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The negative prompt that Wan was released with."""


class WanConfig(fvd.PipelineConfig):
    flow_shift: Annotated[float, Field(gt=0)] = 3.0
    """The one source of the flow shift: training density, score timesteps and samplers all use it. Wan's for 480p."""
    ode_solver: Literal["unipc", "euler"] = "unipc"
    """Solver of the ``ode`` sampler: UniPC multistep, as Wan ships it, or flow-match Euler."""
    negative_prompt: str = WAN_NEGATIVE_PROMPT
    """Text of the unconditional branch."""
    max_text_tokens: Annotated[int, Field(gt=0)] = 512
    """Text is padded or cut to this many tokens; Wan was trained with 512."""
    boundary_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Two-expert checkpoints: ``transformer_2`` serves t < boundary_ratio * 1000. Default: what the checkpoint says."""
