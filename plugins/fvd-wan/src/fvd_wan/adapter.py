"""The Wan adapter: loaded roles turned into operations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor, nn

import fvd
from fvd.adapters import LatentsSource
from fvd.errors import DataError, FvdError
from fvd_wan.components import PATCH, WanComponents
from fvd_wan.config import WanConfig


@dataclass(frozen=True)
class WanConditioning:
    """prompt_embeds: text embeddings [B, max_text_tokens, D], float32, zeros behind each text's last token. Wan attends
    to all of them, padding included: that is how it was trained."""

    prompt_embeds: Tensor


class WanAdapter(fvd.FlowMatchingAdapter):
    """Wan 2.1 text-to-video: a flow-matching transformer on normalised VAE latents."""

    def __init__(self, context: fvd.FamilyContext, components: WanComponents, *, boundary_ratio: float | None) -> None:
        """boundary_ratio: `transformer_2` serves t < boundary_ratio * num_train_timesteps, for roles that have one."""
        assert isinstance(context.config, WanConfig)
        self.config: WanConfig = context.config
        self.context = context
        self.components = components
        self.device = context.device
        self.flow_shift = context.config.flow_shift
        self.boundary_ratio = boundary_ratio
        self._empty_prompt: Tensor | None = None
        self._negative_prompt: Tensor | None = None

    # --- conditioning ---
    def prepare_batch(self, raw_batch: fvd.RawBatch, *, latents_source: LatentsSource) -> fvd.Batch:
        """Raises DataError when the batch lacks what is asked for, or was made for another model."""
        latents = self._data_latents(raw_batch) if latents_source == "data" else self._zero_latents(raw_batch)
        uncond = None if self._negative_prompt is None else self.negative_conditioning(raw_batch.batch_size)
        return fvd.Batch(latents=latents, cond=self._text_conditioning(raw_batch), uncond=uncond, info=raw_batch.info)

    def on_train_start(self) -> None:
        """Encode the empty prompt, where samples will lose theirs."""
        if self.context.conditioning_dropout_rate > 0 and self._empty_prompt is None:
            self._empty_prompt = self.encode_prompts([""]).prompt_embeds

    def ensure_negative_conditioning(self) -> None:
        if self._negative_prompt is None:
            self._negative_prompt = self.encode_prompts([self.config.negative_prompt]).prompt_embeds

    def negative_conditioning(self, batch_size: int) -> WanConditioning:
        if self._negative_prompt is None:
            raise FvdError(
                "the negative prompt has not been encoded",
                cure="Call ensure_negative_conditioning() first; it loads the text encoder.",
            )
        return WanConditioning(self._negative_prompt.expand(batch_size, -1, -1))

    def encode_prompts(self, prompts: Sequence[str]) -> WanConditioning:
        return WanConditioning(self.components.pad_text(self.components.encode_text(prompts)))

    def zero_conditioning(self, cond: WanConditioning) -> WanConditioning:
        return WanConditioning(torch.zeros_like(cond.prompt_embeds))

    def _text_conditioning(self, raw_batch: fvd.RawBatch) -> WanConditioning:
        embeds = _tensor(raw_batch, "text_embedding").to(self.device, torch.float32)
        expected = (self.components.max_text_tokens, self.components.description.text_dim)
        if tuple(embeds.shape[1:]) != expected:
            raise DataError(
                f"text_embedding has shape {list(embeds.shape[1:])} a sample; this model needs {list(expected)}",
                cure="Prepare the data with the text encoder of this model.",
            )
        if not bool(raw_batch.dropped.any()):
            return WanConditioning(embeds)
        if self._empty_prompt is None:
            raise FvdError(
                "a sample lost its prompt, but the empty prompt's embedding was not prepared",
                cure="Set `training.training_cfg_rate` above 0 where prompts are dropped; on_train_start then prepares it.",
            )
        return WanConditioning(torch.where(raw_batch.dropped.to(self.device)[:, None, None], self._empty_prompt, embeds))

    def _data_latents(self, raw_batch: fvd.RawBatch) -> Tensor:
        latents = _tensor(raw_batch, "vae_latent")
        channels = self.components.description.vae.z_dim
        if latents.ndim != 5 or latents.shape[1] != channels or latents.shape[3] % PATCH or latents.shape[4] % PATCH:
            raise DataError(
                f"vae_latent has shape {list(latents.shape[1:])} a sample; this model needs [{channels}, T, H, W] "
                "with H and W even",
                cure="Prepare the data with the VAE of this model.",
            )
        return self.components.normalise(latents.to(self.device))

    def _zero_latents(self, raw_batch: fvd.RawBatch) -> Tensor:
        """Of the size in the run file, or else of the data."""
        geometry = self.context.geometry
        if geometry is not None:
            channels, frames, height, width = self.latent_shape(geometry)
            frames = min(frames, self.context.latent_frames or frames)
            return torch.zeros(raw_batch.batch_size, channels, frames, height, width, device=self.device)
        if "vae_latent" in raw_batch.tensors:
            return torch.zeros_like(raw_batch.tensors["vae_latent"], device=self.device, dtype=torch.float32)
        raise DataError(
            "the data have no latents, and the run file does not say which size to generate",
            cure="Set training.num_height, training.num_width and training.num_frames.",
        )

    # --- schedule ---
    def scheduler(self, kind: str) -> SchedulerMixin:
        if kind not in ("ode", "sde"):
            raise FvdError(f"the family `wan` has no scheduler for sampler {kind!r}", cure="It has schedulers for: ode, sde.")
        if kind == "ode" and self.config.ode_solver == "unipc":
            return UniPCMultistepScheduler(
                num_train_timesteps=self.num_train_timesteps,
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                flow_shift=self.flow_shift,
            )
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.num_train_timesteps, shift=self.flow_shift)

    # --- prediction ---
    def predict(
        self, handle: fvd.RoleHandle, x_t: Tensor, t: Tensor, cond: WanConditioning, *, attn_kind: str = "dense"
    ) -> Tensor:
        """The velocity, noise − x0."""
        if attn_kind not in self.attn_kinds:
            raise FvdError(
                f"the family `wan` has no attention {attn_kind!r}", cure=f"It has: {', '.join(sorted(self.attn_kinds))}."
            )
        embeds = cond.prompt_embeds.to(self.device)
        if "transformer_2" not in handle.modules:
            return self._run(handle.modules["transformer"], x_t, t, embeds)
        return self._run_experts(handle, x_t, t, embeds)

    def _run_experts(self, handle: fvd.RoleHandle, x_t: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        """Each sample through the expert of its timestep."""
        assert self.boundary_ratio is not None  # the family refuses to build without
        low = t < self.boundary_ratio * self.num_train_timesteps
        outputs, positions = [], []
        for name, mine in (("transformer", ~low), ("transformer_2", low)):
            index = mine.nonzero().flatten()
            if len(index):
                outputs.append(self._run(handle.modules[name], x_t[index], t[index], embeds[index]))
                positions.append(index)
        return torch.cat(outputs)[torch.cat(positions).argsort()]

    def _run(self, transformer: nn.Module, x_t: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        with self._autocast():
            velocity = transformer(x_t.float(), timestep=t, encoder_hidden_states=embeds, return_dict=False)[0]
        return velocity.float()

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = self.context.autocast_dtype
        if dtype is None or self.device.type != "cuda":
            return nullcontext()
        return torch.autocast("cuda", dtype=dtype)

    # --- decoding ---
    def latent_shape(self, geometry: fvd.VideoGeometry) -> tuple[int, int, int, int]:
        return self.components.latent_shape(geometry)

    def decode(self, latents: Tensor) -> Tensor:
        return self.components.decode(latents)

    def release(self) -> None:
        self.components.release()


def _tensor(raw_batch: fvd.RawBatch, name: str) -> Tensor:
    if name not in raw_batch.tensors:
        raise DataError(f"the data have no {name}", cure="Prepare them with `fvd data prepare --family wan`.")
    return raw_batch.tensors[name]
