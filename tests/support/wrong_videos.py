"""Text-to-video families with one thing wrong, whose data are real clips that go through core's own files. A good one too."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn
from wrong_plugins import Collector

import fvd

fails = Collector(
    "family",
    provides=fvd.TEXT_TO_VIDEO,
    samplers=frozenset({"ode", "sde"}),
    export_formats=("pooled",),
    example=fvd.Example(path="random"),
)
passes = Collector("family", **fails.defaults)
NETWORK = "network.pt"


class Pooled(fvd.Components):
    """A latent is the mean of 8 × 8 pixels, a word is the codes of its letters."""

    latent_channels, text_dim, max_text_tokens, temporal_ratio, spatial_ratio = 3, 8, 6, 1, 8
    default_plan = fvd.ClipPlan(fps=8, geometry=fvd.VideoGeometry(num_frames=8, height=64, width=64))
    digest = "pooled"

    def __init__(self, context: fvd.FamilyContext) -> None:
        self.device = context.device

    def encode_video(self, video: Tensor) -> Tensor:
        return nn.functional.avg_pool3d(video, (1, 8, 8))

    def decode_video(self, latents: Tensor) -> Tensor:
        return nn.functional.interpolate(latents, scale_factor=(1, 8, 8)).clamp(0, 1)

    def encode_text(self, captions):
        words = [caption.split()[: self.max_text_tokens] or ["-"] for caption in captions]
        return [torch.tensor([[ord(letter) / 128 for letter in f"{word:8.8}"] for word in row]) for row in words]


class Adapter(fvd.TextToVideoAdapter):
    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        text = torch.cat([cond.embeddings.sum(dim=1), self.sigma(t)[:, None]], dim=1)
        planes = text[:, :, None, None, None].expand(-1, -1, *x_t.shape[2:])
        return handle.modules["net"](torch.cat([x_t, planes], dim=1))


class Base(fvd.TextToVideoFamily):
    name = "pooled"
    adapter_class = Adapter
    components_class = Pooled

    @cached_property
    def components(self):
        return self.components_class(self.context)

    def load_role(self, name, spec):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Conv3d(12, 16, 3, padding=1), nn.Tanh(), nn.Conv3d(16, 3, 1))
        if spec.path != "random":
            net.load_state_dict(torch.load(f"{spec.path}/{NETWORK}", weights_only=True))
        handle = fvd.RoleHandle(name, "pooled", bool(spec.trainable), {"net": net})
        handle.apply_trainable()
        return handle

    def export(self, handle, out_dir, format):
        if format != "pooled":
            raise fvd.FvdError(f"no format {format}")
        torch.save(handle.modules["net"].state_dict(), out_dir / NETWORK)


@passes("none", "")
class NothingWrong(Base):
    pass


@fails("B102", "encode_video must return one float32 tensor")
class HalfLatents(Base):
    class Pooled(Pooled):
        def encode_video(self, video):
            return super().encode_video(video).half()

    components_class = Pooled


@fails("B102", "text_embedding")
class OtherTextWidth(Base):
    def data_spec(self):
        latents, text = super().data_spec().fields
        return replace(super().data_spec(), fields=(latents, replace(text, sizes={"D": 9})))


@fails("B102", "the latents of prepare_batch")
class OtherLatentShape(Base):
    class Pooled(Pooled):
        def latent_shape(self, geometry):
            channels, frames, height, width = super().latent_shape(geometry)
            return channels, frames, width, height

    components_class = Pooled


@fails("B103", "the data have no vae_latent")
class AlwaysWantsLatents(Base):
    class Adapter(Adapter):
        def prepare_batch(self, raw_batch, *, latents_source):
            batch = super().prepare_batch(raw_batch, latents_source="data")
            return (
                batch if latents_source == "data" else fvd.Batch(torch.zeros_like(batch.latents), batch.cond, None, batch.info)
            )

    adapter_class = Adapter


@fails("B106", "predict (student) of a batch", also="B109 B110")
class PadsByTheBatch(Base):
    class Adapter(Adapter):
        def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
            longest = cond.embeddings * cond.mask.sum(dim=1).max()
            return super().predict(handle, x_t, t, fvd.TextConditioning(longest, cond.mask), attn_kind=attn_kind)

    adapter_class = Adapter


@fails("B110", "must predict as the empty prompt does")
class DropsToZeros(Base):
    class Adapter(Adapter):
        def prepare_batch(self, raw_batch, *, latents_source):
            kept = fvd.RawBatch(raw_batch.tensors, torch.zeros_like(raw_batch.dropped), raw_batch.info)
            batch = super().prepare_batch(kept, latents_source=latents_source)
            stays = (~raw_batch.dropped)[:, None, None]
            batch.cond = fvd.TextConditioning(batch.cond.embeddings * stays, batch.cond.mask)
            return batch

    adapter_class = Adapter


@fails("B113", "decode, for VideoGeometry")
class SwapsHeightAndWidth(Base):
    class Adapter(Adapter):
        def decode(self, latents):
            return super().decode(latents).transpose(-1, -2)

    adapter_class = Adapter


@fails("B118", "the decoder is gone")
class LosesItsDecoder(Base):
    class Pooled(Pooled):
        gone = False

        def release(self):
            self.gone = True

        def decode_video(self, latents):
            if self.gone:
                raise RuntimeError("the decoder is gone")
            return super().decode_video(latents)

    components_class = Pooled
