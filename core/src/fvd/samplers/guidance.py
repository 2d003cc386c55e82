"""Classifier-free guidance, as one wrapper with the interface of a bound role."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fvd.adapters import Adapter, Conditioning
from fvd.roles import RoleHandle


@dataclass(frozen=True)
class GuidedModel:
    """``x_u + s (x_c − x_u)``, the standard convention (Ho & Salimans 2022): s = 1 is no guidance, and then the
    unconditional pass is not made."""

    adapter: Adapter
    handle: RoleHandle
    cond: Conditioning
    uncond: Conditioning | None
    guidance_scale: float = 1.0

    def predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's own output, guided. [B, C, T, H, W]."""
        cond = self.adapter.predict(self.handle, x_t, t, self.cond)
        if self.guidance_scale == 1.0:
            return cond
        return self._guide(cond, self.adapter.predict(self.handle, x_t, t, self.uncond))

    def predict_x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean latents, guided. Guidance is affine, so this equals guiding the network's output."""
        cond = self.adapter.predict_x0(self.handle, x_t, t, self.cond)
        if self.guidance_scale == 1.0:
            return cond
        return self._guide(cond, self.adapter.predict_x0(self.handle, x_t, t, self.uncond))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.adapter.add_noise(x0, noise, t)

    def _guide(self, cond: Tensor, uncond: Tensor) -> Tensor:
        return uncond + self.guidance_scale * (cond - uncond)
