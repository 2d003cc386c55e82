"""The Wan adapter: the network, its two experts, and its solver."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor, nn

import fvd
from fvd.diffusers_format import TransformerFeatures
from fvd_wan.config import WanConfig


class WanAdapter(TransformerFeatures, fvd.TextToVideoAdapter):
    """Wan 2.1 text-to-video: a flow-matching transformer on normalised VAE latents."""

    blocks_name = "blocks"
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

    def predict_x0_with_features(
        self,
        handle: fvd.RoleHandle,
        x_t: Tensor,
        t: Tensor,
        cond: fvd.TextConditioning,
        *,
        layers: Sequence[int],
        attn_kind: str = "dense",
    ) -> tuple[Tensor, list[Tensor]]:
        """Of each sample those of the expert of its timestep."""
        if "transformer_2" not in handle.modules:
            return super().predict_x0_with_features(handle, x_t, t, cond, layers=layers, attn_kind=attn_kind)
        parts: list[tuple[Tensor, list[Tensor]]] = []
        experts = self._samples_of_experts(t)
        for index in experts.values():
            mine = fvd.TextConditioning(cond.embeddings[index], cond.mask[index])
            parts.append(
                super().predict_x0_with_features(handle, x_t[index], t[index], mine, layers=layers, attn_kind=attn_kind)
            )
        order = torch.cat(list(experts.values())).argsort()
        x0 = torch.cat([part for part, _ in parts])[order]
        features = [torch.cat(of_layer)[order] for of_layer in zip(*(part for _, part in parts), strict=True)]
        return x0, features

    def _run_experts(self, handle: fvd.RoleHandle, x_t: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """Each sample through the expert of its timestep."""
        experts = self._samples_of_experts(t)
        outputs = [self._run(handle.modules[name], x_t[index], t[index], embeddings[index]) for name, index in experts.items()]
        return torch.cat(outputs)[torch.cat(list(experts.values())).argsort()]

    def _samples_of_experts(self, t: Tensor) -> dict[str, Tensor]:
        """Which samples each expert serves, of those that serve any."""
        assert self.boundary_ratio is not None  # the family refuses to build without
        low = t < self.boundary_ratio * self.num_train_timesteps
        samples = {"transformer": (~low).nonzero().flatten(), "transformer_2": low.nonzero().flatten()}
        return {name: index for name, index in samples.items() if len(index)}

    def _run(self, transformer: nn.Module, x_t: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        with self.autocast():
            velocity = transformer(x_t.float(), timestep=t, encoder_hidden_states=embeddings, return_dict=False)[0]
        return velocity.float()
