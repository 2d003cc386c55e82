"""The toy's adapters: conditioning, prediction and decoding are of the mixture, the schedule is the parametrisation's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fvd
from fvd.adapters import LatentsSource
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.data import LATENT, TEXT
from fvd.testing.toy.mixture import GaussianMixture
from fvd.testing.toy.network import ToyNetwork
from fvd.testing.toy.schedulers import FlowEulerScheduler
from fvd.testing.toy.text import embed, mode_weights

PICTURE_SIZE = 32
_VIEW = 1.5
"""The picture shows this many radii around the centre."""


class MixtureAdapter(fvd.BlockFeatures):
    """What both toy families share. Conditioning is a tensor of mode weights [B, K]."""

    joins_conditioning = True

    def __init__(self, context: fvd.FamilyContext, config: ToyConfig, mixture: GaussianMixture) -> None:
        self.device = context.device
        self.config = config
        self.flow_shift = config.flow_shift
        self._modes, self._dimensions = mixture.means.shape
        self._all_modes = self.encode_prompts([""])
        self._negative: Tensor | None = None

    # --- conditioning ---
    def prepare_batch(self, raw_batch: fvd.RawBatch, *, latents_source: LatentsSource) -> fvd.Batch:
        if latents_source == "data":
            latents = raw_batch.tensors[LATENT].to(self.device, torch.float32)
        else:
            latents = torch.zeros(raw_batch.batch_size, self._dimensions, 1, 1, 1, device=self.device)
        dropped = raw_batch.dropped.to(self.device)[:, None]
        cond = torch.where(dropped, self._all_modes, raw_batch.tensors[TEXT].to(self.device))
        uncond = None if self._negative is None else self.negative_conditioning(raw_batch.batch_size)
        return fvd.Batch(latents=latents, cond=cond, uncond=uncond, info=raw_batch.info)

    def ensure_negative_conditioning(self) -> None:
        self._negative = self.encode_prompts([self.config.negative_prompt])

    def negative_conditioning(self, batch_size: int) -> Tensor:
        if self._negative is None:
            raise fvd.FvdError(
                "the negative prompt has not been encoded", cure="Call ensure_negative_conditioning() on the adapter first."
            )
        return self._negative.expand(batch_size, -1)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        return embed(prompts, self._modes).to(self.device)

    def zero_conditioning(self, cond: Tensor) -> Tensor:
        return torch.zeros_like(cond)

    def join_conditioning(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    # --- prediction ---
    def predict(self, handle: fvd.RoleHandle, x_t: Tensor, t: Tensor, cond: Tensor, *, attn_kind: str = "dense") -> Tensor:
        if attn_kind not in self.attn_kinds:
            raise fvd.FvdError(f"the toy has no attention {attn_kind!r}", cure="It has: dense.")
        time = t.to(self.device, torch.float32) / self.num_train_timesteps
        prediction: Tensor = handle.modules["transformer"](x_t.float(), time, mode_weights(cond))
        return prediction

    # --- features ---
    def feature_blocks(self, handle: fvd.RoleHandle) -> list[list[nn.Module]]:
        return [list(_with_blocks(handle).blocks)]

    def feature_widths(self, handle: fvd.RoleHandle) -> list[int]:
        network = _with_blocks(handle)
        return [network.shape.width] * len(network.blocks)

    def block_feature(self, output: Tensor, x_t: Tensor) -> Tensor:
        """[B, D] on a grid of one token."""
        return output[:, :, None, None, None]

    # --- decoding ---
    def latent_shape(self, geometry: fvd.VideoGeometry) -> tuple[int, int, int, int]:
        """A point, whatever the size of the video."""
        return (self._dimensions, 1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """One frame of 32 × 32, the point drawn as a bright dot; the first axis points right, the second up."""
        half = _VIEW * self.config.radius
        axis = torch.linspace(-half, half, PICTURE_SIZE)
        x, y = latents.detach().float().cpu().flatten(1)[:, :2, None, None].unbind(dim=1)
        distance = (axis - x).square() + (-axis[:, None] - y).square()
        dot = torch.exp(-distance / (2 * (half / 12) ** 2))
        return dot[:, None, None].expand(-1, 3, 1, -1, -1).contiguous()


def _with_blocks(handle: fvd.RoleHandle) -> ToyNetwork:
    network = handle.modules["transformer"]
    if not isinstance(network, ToyNetwork):
        raise fvd.FvdError(
            f"the role {handle.name!r} is the exact denoiser, a formula without hidden states: it has no features",
            cure="Use path: random for this role, or take the features from another one.",
        )
    return network


class ToyAdapter(MixtureAdapter, fvd.FlowMatchingAdapter):
    """Flow matching: the networks predict the velocity."""

    def scheduler(self, kind: str) -> Any:
        check_scheduler(kind)
        return FlowEulerScheduler(self.num_train_timesteps, self.flow_shift)


def check_scheduler(kind: str) -> None:
    if kind not in ("ode", "sde"):
        raise fvd.FvdError(f"the toy has no scheduler for samplers of kind {kind!r}", cure="It has: ode, sde.")
