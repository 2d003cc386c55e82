"""The Wan adapter: the network, its two experts, and its solver."""

from __future__ import annotations

import torch
from diffusers import SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor, nn

import fvd
from fvd_wan.config import WanConfig


class WanAdapter(fvd.TextToVideoAdapter):
    """Wan 2.1 text-to-video: a flow-matching transformer on normalised VAE latents."""

    boundary_ratio: float | None = None
    """``transformer_2`` serves t < boundary_ratio * num_train_timesteps, for roles that have one."""

    def scheduler(self, kind: str) -> SchedulerMixin:
        assert isinstance(self.config, WanConfig)
        if kind == "ode" and self.config.ode_solver == "unipc":
            return UniPCMultistepScheduler(
                num_train_timesteps=self.num_train_timesteps,
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                flow_shift=self.flow_shift,
            )
        return super().scheduler(kind)

    def predict(
        self, handle: fvd.RoleHandle, x_t: Tensor, t: Tensor, cond: fvd.TextConditioning, *, attn_kind: str = "dense"
    ) -> Tensor:
        """The velocity, noise − x0."""
        if "transformer_2" not in handle.modules:
            return self._run(handle.modules["transformer"], x_t, t, cond.embeddings)
        return self._run_experts(handle, x_t, t, cond.embeddings)

    def _run_experts(self, handle: fvd.RoleHandle, x_t: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """Each sample through the expert of its timestep."""
        assert self.boundary_ratio is not None  # the family refuses to build without
        low = t < self.boundary_ratio * self.num_train_timesteps
        outputs, positions = [], []
        for name, mine in (("transformer", ~low), ("transformer_2", low)):
            index = mine.nonzero().flatten()
            if len(index):
                outputs.append(self._run(handle.modules[name], x_t[index], t[index], embeddings[index]))
                positions.append(index)
        return torch.cat(outputs)[torch.cat(positions).argsort()]

    def _run(self, transformer: nn.Module, x_t: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        with self.autocast():
            velocity = transformer(x_t.float(), timestep=t, encoder_hidden_states=embeddings, return_dict=False)[0]
        return velocity.float()
