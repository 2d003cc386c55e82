"""What every text-to-video family does: batches, text, sizes, decoding, data. A family adds its network and its files.

class LtxAdapter(fvd.TextToVideoAdapter):
    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        with self.autocast():
            velocity = handle.modules["transformer"](x_t, t, cond.embeddings, cond.mask)
        return velocity.float()
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fvd.adapters import Adapter, Batch, FlowMatchingAdapter, LatentsSource
from fvd.components import Components, TextConditioning
from fvd.data import trajectories
from fvd.data.spec import DataSpec, FieldSpec, RawBatch, VideoGeometry
from fvd.diffusion import DiffusionAdapter, DiffusionSchedule
from fvd.errors import DataError, FvdError
from fvd.families import Encoders, Family, FamilyContext
from fvd.roles import RoleHandle, RoleManager

if TYPE_CHECKING:
    from fvd.config.models import PipelineConfig

LATENTS, TEXT = "vae_latent", "text_embedding"
"""Names of the fields of the data; the loader adds ``text_embedding_mask``."""
SAMPLER_KINDS = ("ode", "sde")


class TextToVideo(Adapter):
    """The conditioning and decoding primitives of a text-to-video family, over its `fvd.Components`.

    Mixed into an adapter that knows the schedule; `TextToVideoAdapter` and `TextToVideoDiffusionAdapter` are the two.
    """

    flow_shift: float
    joins_conditioning = True

    def __init__(self, context: FamilyContext, components: Components) -> None:
        self.context = context
        self.config: PipelineConfig = context.config
        self.components = components
        self.device = context.device
        self.flow_shift = context.config.flow_shift
        self._empty_prompt: TextConditioning | None = None
        self._negative_prompt: TextConditioning | None = None

    # --- conditioning ---
    def prepare_batch(self, raw_batch: RawBatch, *, latents_source: LatentsSource) -> Batch:
        """Raises DataError when the batch lacks what is asked for, or was made for another model."""
        latents = self._data_latents(raw_batch) if latents_source == "data" else self._zero_latents(raw_batch)
        uncond = None if self._negative_prompt is None else self.negative_conditioning(raw_batch.batch_size)
        return Batch(latents=latents, cond=self._text(raw_batch), uncond=uncond, info=raw_batch.info)

    def on_train_start(self) -> None:
        """Encode the empty prompt, where samples will lose theirs."""
        if self.context.conditioning_dropout_rate > 0 and self._empty_prompt is None:
            self._empty_prompt = self.encode_prompts([""])

    def ensure_negative_conditioning(self) -> None:
        """Encode ``pipeline_config.negative_prompt``."""
        if self._negative_prompt is None:
            self._negative_prompt = self.encode_prompts([self.config.negative_prompt])

    def negative_conditioning(self, batch_size: int) -> TextConditioning:
        if self._negative_prompt is None:
            raise FvdError(
                "the negative prompt has not been encoded",
                cure="Call ensure_negative_conditioning() first; it loads the text encoder.",
            )
        return self._negative_prompt.expanded(batch_size)

    def encode_prompts(self, prompts: Sequence[str]) -> TextConditioning:
        return self.components.encode_prompts(prompts)

    def zero_conditioning(self, cond: TextConditioning) -> TextConditioning:
        """Every embedding zeroed; the masks stay."""
        return TextConditioning(torch.zeros_like(cond.embeddings), cond.mask)

    def join_conditioning(self, parts: Sequence[TextConditioning]) -> TextConditioning:
        return TextConditioning(torch.cat([part.embeddings for part in parts]), torch.cat([part.mask for part in parts]))

    def _text(self, raw_batch: RawBatch) -> TextConditioning:
        embeddings = _tensor(raw_batch, TEXT).to(self.device, torch.float32)
        mask = _tensor(raw_batch, f"{TEXT}_mask").to(self.device, torch.float32)
        expected = (self.components.max_text_tokens, self.components.text_dim)
        if tuple(embeddings.shape[1:]) != expected:
            raise DataError(
                f"{TEXT} has shape {list(embeddings.shape[1:])} a sample; this model needs {list(expected)}",
                cure="Prepare the data with the text encoder of this model.",
            )
        if not bool(raw_batch.dropped.any()):
            return TextConditioning(embeddings, mask)
        if self._empty_prompt is None:
            raise FvdError(
                "a sample lost its prompt, but the empty prompt's embedding was not prepared",
                cure="Set `training.training_cfg_rate` above 0 where prompts are dropped; on_train_start then prepares it.",
            )
        dropped, empty = raw_batch.dropped.to(self.device), self._empty_prompt
        return TextConditioning(
            torch.where(dropped[:, None, None], empty.embeddings, embeddings), torch.where(dropped[:, None], empty.mask, mask)
        )

    def _data_latents(self, raw_batch: RawBatch) -> Tensor:
        latents = _tensor(raw_batch, LATENTS)
        channels, patch = self.components.latent_channels, self.components.patch_size
        if latents.ndim != 5 or latents.shape[1] != channels or latents.shape[3] % patch or latents.shape[4] % patch:
            raise DataError(
                f"{LATENTS} has shape {list(latents.shape[1:])} a sample; this model needs [{channels}, T, H, W] "
                f"with H and W multiples of {patch}",
                cure="Prepare the data with the VAE of this model.",
            )
        return self.components.normalise(latents.to(self.device))

    def _zero_latents(self, raw_batch: RawBatch) -> Tensor:
        """Of the size in the run file, or else of the data."""
        geometry = self.context.geometry
        if geometry is not None:
            channels, frames, height, width = self.latent_shape(geometry)
            frames = min(frames, self.context.latent_frames or frames)
            return torch.zeros(raw_batch.batch_size, channels, frames, height, width, device=self.device)
        if LATENTS in raw_batch.tensors:
            return torch.zeros_like(raw_batch.tensors[LATENTS], device=self.device, dtype=torch.float32)
        if trajectories.LATENTS in raw_batch.on_host:
            shape = raw_batch.on_host[trajectories.LATENTS].shape
            return torch.zeros(shape[0], *shape[2:], device=self.device)
        raise DataError(
            "the data have no latents, and the run file does not say which size to generate",
            cure="Set training.num_height, training.num_width and training.num_frames.",
        )

    # --- prediction ---
    def autocast(self) -> AbstractContextManager[object]:
        """Where `predict` runs its network: in the run's compute dtype on a GPU, in float32 on the CPU. What a network returns
        under it is to be made float32."""
        dtype = self.context.autocast_dtype
        if dtype is None or self.device.type != "cuda":
            return nullcontext()
        return torch.autocast("cuda", dtype=dtype)

    # --- decoding ---
    def latent_shape(self, geometry: VideoGeometry) -> tuple[int, int, int, int]:
        return self.components.latent_shape(geometry)

    def decode(self, latents: Tensor) -> Tensor:
        return self.components.decode_video(self.components.denormalise(latents.to(self.device)))

    def release(self) -> None:
        self.components.release()


class TextToVideoAdapter(TextToVideo, FlowMatchingAdapter):
    """A text-to-video family whose network predicts the velocity of flow matching. A subclass writes ``predict``."""

    def scheduler(self, kind: str) -> Any:
        """diffusers' flow-matching Euler scheduler, for both samplers. Raises FvdError for other kinds."""
        check_sampler_kind(kind)
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.num_train_timesteps, shift=self.flow_shift)


class TextToVideoDiffusionAdapter(TextToVideo, DiffusionAdapter):
    """A text-to-video family whose network predicts noise, v or x0. A subclass writes ``predict`` and `make_scheduler`.

    ``pipeline_config.flow_shift`` moves the timesteps of training; 1, the default, is none. The solver places its own.
    """

    def __init__(self, context: FamilyContext, components: Components) -> None:
        super().__init__(context, components)
        self.schedule = DiffusionSchedule.of(self.make_scheduler(), device=self.device)

    @abstractmethod
    def make_scheduler(self) -> Any:
        """A fresh diffusers scheduler with the noise schedule and prediction type that the network was trained with, whose
        ``step`` takes the network's output, a timestep and x_t: DDIM, DPM-Solver and the like."""

    def scheduler(self, kind: str) -> Any:
        """`make_scheduler`, for both samplers. Raises FvdError for other kinds."""
        check_sampler_kind(kind)
        return self.make_scheduler()


class TextToVideoFamily(Family):
    """A family of text-to-video models. A subclass names itself and its adapter, and writes `components`, `load_role` and
    `export`; `fvd.diffusers_format.DiffusersFamily` has these for models in diffusers format."""

    name: ClassVar[str]
    """The family's name in run files."""
    adapter_class: ClassVar[type[TextToVideo]]

    @property
    @abstractmethod
    def components(self) -> Components:
        """The shared parts at ``context.components_path``, one object for the adapter and for `fvd data prepare`: a
        `functools.cached_property`. Raises ModelError."""

    def check_role(self, handle: RoleHandle) -> None:
        """Raise ModelError that names both where a role does not fit the components. Default: nothing is known."""

    def build_adapter(self, roles: RoleManager) -> TextToVideo:
        for handle in roles:
            if handle.family == self.name:
                self.check_role(handle)
        return self.adapter_class(self.context, self.components)

    def data_spec(self) -> DataSpec:
        """Latents and text, as `fvd data prepare` writes them; dropped texts become the empty prompt."""
        sizes = {"C": self.components.latent_channels}, {"D": self.components.text_dim}
        return DataSpec(
            fields=(
                FieldSpec(name=LATENTS, axes=("C", "T", "H", "W"), sizes=sizes[0], source="latents"),
                FieldSpec(name=TEXT, axes=("L", "D"), sizes=sizes[1], source="text", ragged="L"),
            ),
            text_padding_length=self.components.max_text_tokens,
            conditioning_dropout="empty_prompt",
        )

    def build_encoders(self) -> Encoders:
        return self.components

    def latent_shape(self, geometry: VideoGeometry) -> tuple[int, int, int, int]:
        return self.components.latent_shape(geometry)


def check_sampler_kind(kind: str) -> None:
    """Raises FvdError for a kind of scheduler that text-to-video families have none for."""
    if kind not in SAMPLER_KINDS:
        raise FvdError(
            f"there is no scheduler for a sampler of kind {kind!r}",
            cure=f"There are schedulers for: {', '.join(SAMPLER_KINDS)}.",
        )


def _tensor(raw_batch: RawBatch, name: str) -> Tensor:
    if name not in raw_batch.tensors:
        raise DataError(f"the data have no {name}", cure="Prepare them with `fvd data prepare` for this family.")
    return raw_batch.tensors[name]
