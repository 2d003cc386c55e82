"""An adapter that notes which primitives a method calls, on whom, and refuses everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from fvd.adapters import Adapter, Batch, Conditioning, LatentsSource
from fvd.data.spec import RawBatch, VideoGeometry
from fvd.roles import RoleHandle
from fvd.testing.conformance.outcomes import CheckFailure


class RecordingAdapter(Adapter):
    """What a method sees of ``inner``: the vocabulary and nothing else.

    calls: (role, or "" for the adapter itself; primitive). Calls that ``inner`` makes of itself do not count.
    """

    def __init__(self, inner: Adapter) -> None:
        self._inner = inner
        self.calls: set[tuple[str, str]] = set()
        self.device = inner.device
        self.attn_kinds = inner.attn_kinds
        self.joins_conditioning = inner.joins_conditioning

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CheckFailure(f"it uses adapter.{name}, which is no primitive: another family does not have it")

    def _note(self, primitive: str, handle: RoleHandle | None = None) -> Adapter:
        self.calls.add((handle.name if handle else "", primitive))
        return self._inner

    # --- conditioning ---
    def prepare_batch(self, raw_batch: RawBatch, *, latents_source: LatentsSource) -> Batch:
        return self._note("prepare_batch").prepare_batch(raw_batch, latents_source=latents_source)

    def ensure_negative_conditioning(self) -> None:
        self._note("ensure_negative_conditioning").ensure_negative_conditioning()

    def negative_conditioning(self, batch_size: int) -> Conditioning:
        return self._note("negative_conditioning").negative_conditioning(batch_size)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return self._note("encode_prompts").encode_prompts(prompts)

    def zero_conditioning(self, cond: Conditioning) -> Conditioning:
        return self._note("zero_conditioning").zero_conditioning(cond)

    # --- schedule ---
    @property
    def num_train_timesteps(self) -> int:  # type: ignore[override]
        return self._note("num_train_timesteps").num_train_timesteps

    def shift_and_clamp_timestep(self, t: Tensor, shift: float | None = None) -> Tensor:
        return self._note("shift_and_clamp_timestep").shift_and_clamp_timestep(t, shift)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self._note("add_noise").add_noise(x0, noise, t)

    def scheduler(self, kind: str) -> object:
        return self._note("scheduler").scheduler(kind)

    # --- prediction ---
    def predict(self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense") -> Tensor:
        return self._note("predict", handle).predict(handle, x_t, t, cond, attn_kind=attn_kind)

    def training_target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self._note("training_target").training_target(x0, noise, t)

    def predict_x0(self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense") -> Tensor:
        return self._note("predict_x0", handle).predict_x0(handle, x_t, t, cond, attn_kind=attn_kind)

    def predict_noise(
        self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense"
    ) -> Tensor:
        return self._note("predict_noise", handle).predict_noise(handle, x_t, t, cond, attn_kind=attn_kind)

    # --- features ---
    def feature_widths(self, handle: RoleHandle) -> Sequence[int]:
        return self._note("feature_widths", handle).feature_widths(handle)

    def features(
        self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, layers: Sequence[int]
    ) -> list[Tensor]:
        return self._note("features", handle).features(handle, x_t, t, cond, layers=layers)

    def predict_x0_with_features(
        self,
        handle: RoleHandle,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        *,
        layers: Sequence[int],
        attn_kind: str = "dense",
    ) -> tuple[Tensor, list[Tensor]]:
        inner = self._note("predict_x0_with_features", handle)
        return inner.predict_x0_with_features(handle, x_t, t, cond, layers=layers, attn_kind=attn_kind)

    # --- decoding ---
    def decode(self, latents: Tensor) -> Tensor:
        return self._note("decode").decode(latents)

    def latent_shape(self, geometry: VideoGeometry) -> tuple[int, int, int, int]:
        return self._note("latent_shape").latent_shape(geometry)

    # --- what is no primitive ---
    def join_conditioning(self, parts: Sequence[Conditioning]) -> Conditioning:
        return self._inner.join_conditioning(parts)

    def backward(self, loss: Tensor, ctx: object | None) -> None:
        self._inner.backward(loss, ctx)
