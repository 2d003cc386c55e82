"""Pictures of a panel: videos side by side and one below the other, each under its label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

NARROWEST, WIDEST = 128, 480
"""Pixels: smaller pictures are enlarged until their labels fit, larger ones made smaller so that panels can be looked at."""
LABEL_HEIGHT = 18
EDGE = 2
"""Pixels between two pictures."""
GREY = 0.3


def tile(rows: Sequence[Sequence[tuple[str, Tensor]]]) -> Tensor:
    """One video [3, T, H', W'] of rows of (label, video [3, T, H, W] in [0, 1]), all of one size."""
    return torch.cat([torch.cat([labelled(label, video) for label, video in row], dim=-1) for row in rows], dim=-2)


def labelled(label: str, video: Tensor) -> Tensor:
    """``video`` at a size to look at, under a strip that says what it is, with an edge to the next."""
    resized = _resized(video)
    strip = _strip(label, resized.shape[-1])[:, None].expand(-1, resized.shape[1], -1, -1)
    return functional.pad(torch.cat([strip, resized], dim=-2), (0, EDGE, 0, EDGE), value=GREY)


def _resized(video: Tensor) -> Tensor:
    frames = video.float().movedim(1, 0)
    height, width = frames.shape[-2:]
    if width < NARROWEST:
        factor = math.ceil(NARROWEST / width)
        frames = functional.interpolate(frames, scale_factor=factor, mode="nearest")
    elif width > WIDEST:
        frames = functional.interpolate(frames, size=(round(height * WIDEST / width), WIDEST), mode="area")
    return frames.movedim(0, 1)


def _strip(text: str, width: int) -> Tensor:
    """White on grey, [3, LABEL_HEIGHT, width]."""
    image = Image.new("L", (width, LABEL_HEIGHT), color=round(255 * GREY))
    ImageDraw.Draw(image).text((4, 3), text, fill=255, font=ImageFont.load_default())
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return pixels.expand(3, -1, -1)
