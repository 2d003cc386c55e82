"""Classifier-free guidance, as one wrapper with the interface of a bound role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fvd.adapters import Adapter, Conditioning, RoleView
from fvd.guidance import guided
from fvd.roles import RoleHandle


@dataclass(frozen=True)
class GuidedModel:
    """``x_u + s (x_c − x_u)``, the standard convention (Ho & Salimans 2022): s = 1 is no guidance, and then the
    unconditional pass is not made. Guidance is affine, so guiding x0, noise or the network's output is one and the same."""

    adapter: Adapter
    handle: RoleHandle
    cond: Conditioning
    uncond: Conditioning | None
    guidance_scale: float = 1.0

    @property
    def num_train_timesteps(self) -> int:
        return self.adapter.num_train_timesteps

    def predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's own output, guided. [B, C, T, H, W]."""
        return self._guided(RoleView(self.adapter, self.handle).predict, x_t, t)

    def predict_x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean latents, guided."""
        return self._guided(RoleView(self.adapter, self.handle).predict_x0, x_t, t)

    def predict_noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The Gaussian draw, guided."""
        return self._guided(RoleView(self.adapter, self.handle).predict_noise, x_t, t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.adapter.add_noise(x0, noise, t)

    def _guided(self, predict: Callable[[Tensor, Tensor, Conditioning], Tensor], x_t: Tensor, t: Tensor) -> Tensor:
        cond = predict(x_t, t, self.cond)
        if self.guidance_scale == 1.0:
            return cond
        uncond = predict(x_t, t, self.uncond)
        return guided(cond, uncond, self.guidance_scale)
