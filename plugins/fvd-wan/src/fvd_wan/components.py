"""Wan's VAE and text encoder."""

from __future__ import annotations

import html
import re
from pathlib import Path

from transformers import UMT5EncoderModel

import fvd
from fvd.diffusers_format import DiffusersComponents
from fvd.model_folder import positive_integer
from fvd_wan.config import WanConfig

WAN_PLAN = fvd.ClipPlan(fps=16.0, geometry=fvd.VideoGeometry(num_frames=81, height=480, width=832))
"""Wan 2.1's own clips."""


class WanComponents(DiffusersComponents):
    """Wan attends to all of ``max_text_tokens``, zeros included: that is how it was trained."""

    vae_name = "AutoencoderKLWan"
    text_encoder_class = UMT5EncoderModel
    clip_plan = WAN_PLAN
    latent_channels_key = "z_dim"
    patch_size = 2
    encoding_version = "fvd-wan encodings 1"

    def __init__(self, folder: Path, context: fvd.FamilyContext) -> None:
        super().__init__(folder, context)
        assert isinstance(context.config, WanConfig)
        self.max_text_tokens = context.config.max_text_tokens
        self.temporal_ratio = positive_integer(folder / "vae", self.vae_config, "scale_factor_temporal", 4)
        self.spatial_ratio = positive_integer(folder / "vae", self.vae_config, "scale_factor_spatial", 8)

    def clean_prompt(self, text: str) -> str:
        """Mended encoding errors, no HTML entities, single spaces: what Wan's text encoder was fed in training."""
        import ftfy  # only where text is encoded: training from prepared data starts sooner without it

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        return re.sub(r"\s+", " ", text).strip()
