"""Families that are the toy with one thing wrong, each for the check of the conformance kit that finds it."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from pydantic import ConfigDict
from wrong_plugins import Collector

import fvd
from fvd.testing.toy.adapter import ToyAdapter
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.data import PointsSpec
from fvd.testing.toy.family import ToyFamily
from fvd.testing.toy.network import ToyNetwork
from fvd.testing.toy_noise.family import ToyNoiseAdapter, ToyNoiseFamily

EVERYTHING = fvd.TEXT_TO_VIDEO | fvd.FEATURE_PRIMITIVES

fails = Collector(
    "family",
    provides=EVERYTHING,
    samplers=frozenset({"ode", "sde"}),
    config="fvd.testing.toy.config:ToyConfig",
    dataset_kind="toy",
    export_formats=("toy",),
    example=fvd.Example(path="random", frozen_path="analytic"),
)


class Base(ToyFamily):
    """The toy with another adapter."""

    Adapter: type[ToyAdapter] = ToyAdapter

    def build_adapter(self, roles):
        return self.Adapter(self.context, self.config, self.mixture)


# --- contract ---
@fails("C01", "must be a subclass of fvd.Family")
class NoFamily:
    pass


@fails("C01", "lacks export")
class Unfinished(Base):
    export = fvd.Family.export


@fails("C01", "must be a function", tiny=f"{__name__}:__name__")
class TinyIsText(Base):
    pass


@fails("C02", "implements decode, which `provides` does not declare", provides=EVERYTHING - {"decode"})
class Undeclared(Base):
    pass


@fails("C02", "declares attn_kinds dense, vsa", attn_kinds={"dense", "vsa"})
class OtherAttention(Base):
    pass


@fails("C02", "declares zero_conditioning, and", also="B109")
class NotImplementedThough(Base):
    class Adapter(ToyAdapter):
        zero_conditioning = fvd.Adapter.zero_conditioning


@fails("C03", "has no argument 'latents'")
class RenamedArgument(Base):
    class Adapter(ToyAdapter):
        def decode(self, z):
            return super().decode(z)


@fails("C03", "export: 'format' must not be keyword-only", also="B114")
class KeywordOnly(Base):
    def export(self, handle, out_dir, *, format):
        super().export(handle, out_dir, format)


class AnyKeyConfig(ToyConfig):
    model_config = ConfigDict(extra="ignore")


class SilentConfig(ToyConfig):
    loudness: float = 1.0


class ForgetfulConfig(ToyConfig):
    seen: int = 0
    """Counts up whenever it is read."""

    def model_post_init(self, context: Any) -> None:
        object.__setattr__(self, "seen", self.seen + 1)


class RootedConfig(ToyConfig):
    def __reduce__(self):
        raise TypeError("holds a file that is open")


@fails("C04", "takes keys that it does not know", config=f"{__name__}:AnyKeyConfig")
class TakesAnything(Base):
    pass


@fails("C04", "no description of loudness", config=f"{__name__}:SilentConfig")
class Silent(Base):
    pass


@fails("C04", "seen", config=f"{__name__}:ForgetfulConfig")
class Forgetful(Base):
    pass


@fails("C05", "its config cannot be pickled: TypeError: holds a file", config=f"{__name__}:RootedConfig")
class Rooted(Base):
    pass


@fails("C05", "its DataSpec cannot be pickled")
class LocalData(Base):
    def data_spec(self):
        class Local(PointsSpec):
            pass

        given = super().data_spec()
        return Local(fields=given.fields, text_padding_length=1, mixture=given.mixture)


# --- behaviour ---
@fails("B101", "requires_grad must be False")
class Thawed(Base):
    def load_role(self, name, spec):
        handle = super().load_role(name, fvd.RoleConfig(path="random", trainable=True))
        handle.trainable = bool(spec.trainable)
        return handle


@fails("B101", "must be in eval mode")
class LeftInTrainMode(Base):
    def load_role(self, name, spec):
        handle = super().load_role(name, spec)
        handle.modules["transformer"].train()
        return handle


@fails("B101", "master weights must be float32")
class HalfMasters(Base):
    def load_role(self, name, spec):
        handle = super().load_role(name, spec)
        handle.modules["transformer"].bfloat16()
        return handle


@fails("B101", "ZeroDivisionError: division by zero (wrong_families, line ")
class Crashes(Base):
    def load_role(self, name, spec):
        return 1 / 0


@fails("B101", "SystemExit: 3")
class Exits(Base):
    def data_spec(self):
        raise SystemExit(3)


@fails("B101", "has written nothing", tiny=f"{__name__}:write_nothing")
class WritesNoModel(Base):
    pass


@fails("B101", "example.path acme/large-model is not on this machine", example=fvd.Example(path="acme/large-model"))
class OnlyOnAHub(Base):
    pass


def write_nothing(folder: Path) -> None:
    folder.mkdir()


@fails("B102", "must hand on the info")
class ForgetsTheInfo(Base):
    class Adapter(ToyAdapter):
        def prepare_batch(self, raw_batch, *, latents_source):
            batch = super().prepare_batch(raw_batch, latents_source=latents_source)
            return fvd.Batch(batch.latents, batch.cond, batch.uncond) if latents_source == "data" else batch


@fails("B103", "must be zeros")
class OnesForZeros(Base):
    class Adapter(ToyAdapter):
        def prepare_batch(self, raw_batch, *, latents_source):
            batch = super().prepare_batch(raw_batch, latents_source=latents_source)
            if latents_source == "zeros":
                batch.latents += 1
            return batch


@fails("B104", "must return the dtype of x0")
class AlwaysFloat32(Base):
    class Adapter(ToyAdapter):
        def add_noise(self, x0, noise, t):
            return super().add_noise(x0.float(), noise, t)


@fails("B104", "at timestep 0 must be x0", also="B105 B112")
class Reversed(Base):
    class Adapter(ToyAdapter):
        def add_noise(self, x0, noise, t):
            return super().add_noise(noise, x0, t)


@fails("B104", "must be linear")
class Clipped(Base):
    class Adapter(ToyAdapter):
        def add_noise(self, x0, noise, t):
            return super().add_noise(x0.clamp(-8, 8), noise, t)


@fails("B105", "add_noise(predict_x0, predict_noise, t) must be x_t")
class VelocityCalledNoise(Base):
    class Adapter(ToyAdapter):
        def predict_noise(self, handle, x_t, t, cond, *, attn_kind="dense"):
            return self.predict(handle, x_t, t, cond, attn_kind=attn_kind)


@fails("B105", "training_target(predict_x0, predict_noise, t) must be predict", also="B119")
class WrongSign(Base):
    class Adapter(ToyAdapter):
        def training_target(self, x0, noise, t):
            return x0 - noise


@fails("B106", "predict (student) of a batch")
class FirstTimestepForAll(Base):
    class Adapter(ToyAdapter):
        def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
            return super().predict(handle, x_t, t[:1].expand(len(t)), cond, attn_kind=attn_kind)


@fails("B107", "predict of a frozen role must keep the graph")
class FrozenWithoutGraph(Base):
    class Adapter(ToyAdapter):
        def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
            with torch.set_grad_enabled(handle.trainable and torch.is_grad_enabled()):
                return super().predict(handle, x_t, t, cond, attn_kind=attn_kind)


@fails("B107", "no gradient reaches x_t through a trained role")
class DetachesInput(Base):
    class Adapter(ToyAdapter):
        def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
            return super().predict(handle, x_t.detach(), t, cond, attn_kind=attn_kind)


@fails("B108", "predict draws from the global random state of torch")
class DrawsGlobally(Base):
    class Adapter(ToyAdapter):
        def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
            torch.rand(1)
            return super().predict(handle, x_t, t, cond, attn_kind=attn_kind)


@fails("B108", "must not change its inputs", also="B109 B112")
class MovesTimestepsInPlace(Base):
    class Adapter(ToyAdapter):
        def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
            t += 1e-4
            return super().predict(handle, x_t, t, cond, attn_kind=attn_kind)


@fails("B109", "predict is the same for 4 prompts", also="B110")
class Deaf(Base):
    class Adapter(ToyAdapter):
        def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
            return super().predict(handle, x_t, t, torch.zeros_like(cond), attn_kind=attn_kind)


@fails("B109", "zero_conditioning predicts the same as the prompt")
class KeepsConditioning(Base):
    class Adapter(ToyAdapter):
        def zero_conditioning(self, cond):
            return cond


@fails("B110", "a dropped sample predicts as if it were kept")
class NeverDrops(Base):
    class Adapter(ToyAdapter):
        def prepare_batch(self, raw_batch, *, latents_source):
            kept = fvd.RawBatch(raw_batch.tensors, torch.zeros_like(raw_batch.dropped), raw_batch.info)
            return super().prepare_batch(kept, latents_source=latents_source)


@fails("B111", "must clamp to [0, 1000]")
class NoClamp(Base):
    class Adapter(ToyAdapter):
        def shift_and_clamp_timestep(self, t, shift=None):
            return t


@fails("B112", "must be a fresh one")
class OneScheduler(Base):
    class Adapter(ToyAdapter):
        @cached_property
        def schedulers(self):
            return {kind: ToyAdapter.scheduler(self, kind) for kind in ("ode", "sde")}

        def scheduler(self, kind):
            ToyAdapter.scheduler(self, kind)
            return self.schedulers[kind]


@fails("B112", "of a kind that there is not must raise fvd.FvdError")
class AnyScheduler(Base):
    class Adapter(ToyAdapter):
        def scheduler(self, kind):
            return super().scheduler("ode")


@fails("B113", "must give values in [0, 1]")
class MinusOneToOne(Base):
    class Adapter(ToyAdapter):
        def decode(self, latents):
            return 2 * super().decode(latents) - 1


@fails("B114", "a role predicts something else")
class ExportsTheOriginal(Base):
    def export(self, handle, out_dir, format):
        original = super().load_role(handle.name, fvd.RoleConfig(path="random", trainable=True))
        super().export(original, out_dir, format)


@fails("B114", "must raise fvd.FvdError, got None")
class AnyFormat(Base):
    def export(self, handle, out_dir, format):
        super().export(handle, out_dir, "toy")


@fails("B114", "reads none of the formats")
class CannotReadItself(Base):
    def export(self, handle, out_dir, format):
        super().export(handle, out_dir, format)
        (out_dir / "config.json").unlink()


@fails("B115", "2 steps and 2 more do not give what 4 at once give")
class AnotherNetworkEachTime(Base):
    def load_role(self, name, spec):
        handle = super().load_role(name, spec)
        if spec.path == "random" and spec.trainable:
            torch.seed()
            for parameter in handle.trainable_parameters():
                parameter.data.add_(1e-3 * torch.randn_like(parameter))
        return handle

    def shard_units(self, handle):
        return []


@fails("B116", "the kernel is not there", attn_kinds={"dense", "vsa"})
class NoKernel(Base):
    class Adapter(ToyAdapter):
        attn_kinds = frozenset({"dense", "vsa"})

        def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
            if attn_kind == "vsa":
                raise RuntimeError("the kernel is not there")
            return super().predict(handle, x_t, t, cond, attn_kind=attn_kind)


@fails("B117", "must return modules of the role")
class ForeignUnits(Base):
    def shard_units(self, handle):
        return copy.deepcopy(super().shard_units(handle))


@fails("B119", "they are off by", dataset_kind="toy_noise")
class NoiseTakenForV(ToyNoiseFamily):
    class Adapter(ToyNoiseAdapter):
        def scheduler(self, kind):
            super().scheduler(kind)
            betas = {"beta_start": 1e-4, "beta_end": 0.02}
            return DDIMScheduler(**betas, prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")

    def build_adapter(self, roles):
        return self.Adapter(self.context, self.config, self.mixture)


@fails("B118", "the text encoder is gone")
class GoneForGood(Base):
    class Adapter(ToyAdapter):
        released = False

        def encode_prompts(self, prompts):
            if self.released:
                raise RuntimeError("the text encoder is gone")
            return super().encode_prompts(prompts)

        def release(self):
            self.released = True


@fails("B120", "do they come from x_t")
class FeaturesOfNothing(Base):
    class Adapter(ToyAdapter):
        def block_feature(self, output, x_t):
            return torch.ones_like(super().block_feature(output, x_t))


@fails("B120", "must keep the graph to x_t")
class DetachedFeatures(Base):
    class Adapter(ToyAdapter):
        def block_feature(self, output, x_t):
            return super().block_feature(output, x_t).detach()


@fails("B120", "in the order of `layers`", also="B114")
class FeaturesInOrderOfDepth(Base):
    """A deeper network than the toy's own, which has one layer in its second half."""

    class Adapter(ToyAdapter):
        def predict_x0_with_features(self, handle, x_t, t, cond, *, layers, attn_kind="dense"):
            return super().predict_x0_with_features(handle, x_t, t, cond, layers=sorted(layers), attn_kind=attn_kind)

    def load_role(self, name, spec):
        handle = super().load_role(name, spec)
        if isinstance(handle.modules["transformer"], ToyNetwork):
            blocks = handle.modules["transformer"].blocks
            blocks.extend(copy.deepcopy(list(blocks)))
        return handle


@fails("B120", "of 2 blocks must be refused")
class FeaturesOfTheNearestLayer(Base):
    class Adapter(ToyAdapter):
        def features(self, handle, x_t, t, cond, *, layers):
            return super().features(handle, x_t, t, cond, layers=[layer % 2 for layer in layers])
