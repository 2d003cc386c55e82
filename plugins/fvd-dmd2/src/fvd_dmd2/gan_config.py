"""``method_config.gan:`` of the method dmd2. No torch here."""

from __future__ import annotations

from fvd.config.models import StrictModel


class GanConfig(StrictModel):
    """The adversarial loss on real latents (arXiv:2405.14867, section 4.3)."""
