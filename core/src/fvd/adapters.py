"""Adapters: a family's loaded modules turned into operations.

An adapter sees role handles, never role names, and no algorithm. Its public tensors are latents [B, C, T, H, W] and
timesteps [B] in [0, num_train_timesteps]; it permutes at its own edge. `Adapter` holds the vocabulary; a family
implements the primitives that it declares in its `fvd.FamilySpec`, and inherits a clear refusal for the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from fvd import flow
from fvd.data.spec import RawBatch, VideoGeometry
from fvd.errors import PluginError, mistake_in_code
from fvd.roles import RoleHandle

Conditioning = Any
"""What only the adapter looks into: text embeddings, image features, a mapping of them."""

LatentsSource = Literal["data", "zeros"]


@dataclass
class Batch:
    """What `prepare_batch` makes of a raw batch.

    latents: x0 [B, C, T, H, W], float32, normalised; zeros of that shape where the method rolls out from noise.
    cond / uncond: conditioning for this batch; uncond is None until `ensure_negative_conditioning` has been called.
    info: the metadata of each sample.
    """

    latents: Tensor
    cond: Conditioning
    uncond: Conditioning | None
    info: list[dict[str, object]] = field(default_factory=list)

    @property
    def batch_size(self) -> int:
        return self.latents.shape[0]


class Adapter(ABC):
    """The vocabulary of primitives. Only `prepare_batch` is required of every family."""

    device: torch.device
    num_train_timesteps: int
    attn_kinds: frozenset[str] = frozenset({"dense"})
    """Values of ``attn_kind`` that the prediction primitives understand."""
    joins_conditioning: bool = False
    """Whether `join_conditioning` is there."""

    # --- conditioning ---
    @abstractmethod
    def prepare_batch(self, raw_batch: RawBatch, *, latents_source: LatentsSource) -> Batch:
        """What the loader yields, made ready: latents normalised, [B, C, T, H, W], float32; the conditioning of each sample,
        with that of the empty text where ``raw_batch.dropped`` [B] says so; ``uncond`` once negative conditioning is there.

        latents_source ``"zeros"``: only the shape of the latents is wanted; the raw batch may have none. Raises DataError for
        a batch that was made for another model.
        """

    def ensure_negative_conditioning(self) -> None:
        """From here on ``Batch.uncond`` is there. For a method's ``on_train_start``: it may load the text encoder. Explicit,
        idempotent, never a side effect of something else."""
        self._missing("ensure_negative_conditioning")

    def negative_conditioning(self, batch_size: int) -> Conditioning:
        """The unconditional branch of guidance for ``batch_size`` samples. Raises FvdError before
        `ensure_negative_conditioning`."""
        self._missing("negative_conditioning")

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of len(prompts) samples. May load the text encoder, which stays until ``release()``."""
        self._missing("encode_prompts")

    def zero_conditioning(self, cond: Conditioning) -> Conditioning:
        """``cond`` with every embedding zeroed; shapes and masks stay."""
        self._missing("zero_conditioning")

    # --- schedule ---
    def shift_and_clamp_timestep(self, t: Tensor, shift: float | None = None) -> Tensor:
        """[B] -> [B], float32: ``shift``, by default the run's ``flow_shift``, applied, inside [0, num_train_timesteps].
        Monotone; a shift of 1 changes nothing, a larger one moves timesteps towards noise."""
        self._missing("shift_and_clamp_timestep")

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [B, C, T, H, W] at timesteps ``t`` [B], in the dtype of ``x0``. At 0 it is x0 (or nearly, where the schedule says
        so), at num_train_timesteps noise."""
        self._missing("add_noise")

    def scheduler(self, kind: str) -> Any:
        """A fresh diffusers scheduler for samplers of ``kind``: ``set_timesteps``, ``timesteps``, and ``step(prediction, t,
        x_t)`` on what `predict` returns, for x_t as `add_noise` makes it. Of flow-matching families it has this run's flow
        shift; those of diffusion families place their timesteps by their own schedule, whatever the shift of training. Raises
        FvdError for a kind that the descriptor does not name."""
        self._missing("scheduler")

    # --- prediction ---
    def predict(self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense") -> Tensor:
        """The network's own output [B, C, T, H, W], float32, for x_t [B, C, T, H, W] at timesteps ``t`` [B]: a velocity
        (noise - x0), noise, v or x0, as the family's networks do. Sample b depends on nothing of the others."""
        self._missing("predict")

    def training_target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What `predict` regresses to at x_t = add_noise(x0, noise, t): [B, C, T, H, W], float32."""
        self._missing("training_target")

    def predict_x0(self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense") -> Tensor:
        """The clean latents that the network's output implies, [B, C, T, H, W], float32."""
        self._missing("predict_x0")

    def predict_noise(
        self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense"
    ) -> Tensor:
        """The Gaussian draw that the network's output implies, [B, C, T, H, W], float32. Never a velocity: x_t is
        add_noise(predict_x0, predict_noise, t)."""
        self._missing("predict_noise")

    # --- features ---
    def feature_widths(self, handle: RoleHandle) -> Sequence[int]:
        """The width D of the hidden states after each block of the role's network; as many as it has blocks. Raises FvdError
        for a network without blocks."""
        self._missing("feature_widths")

    def features(
        self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, layers: Sequence[int]
    ) -> list[Tensor]:
        """The hidden states after the blocks ``layers`` (0 is the first) of the role's network, each [B, D, T', H', W'],
        float32, on the grid of its tokens. Gradient flows to x_t, and to the parameters that require it. Raises FvdError for a
        block that there is not."""
        self._missing("features")

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
        """`predict_x0` and `features` of one and the same forward."""
        self._missing("predict_x0_with_features")

    # --- decoding ---
    def latent_shape(self, geometry: VideoGeometry) -> tuple[int, int, int, int]:
        """(C, T, H, W) of the latents of a video of this size. Raises FvdError for sizes the model cannot make."""
        self._missing("latent_shape")

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, C, T', H', W'] -> video [B, 3, T, H, W] in [0, 1], float32, on the CPU. May load the VAE,
        which stays until ``release()``."""
        self._missing("decode")

    # --- life cycle ---
    def on_train_start(self) -> None:
        """Once, before the first step: encode what every batch needs. Text encoders may be loaded here."""

    def release(self) -> None:
        """Free what training does not need (text encoder, VAE). Called after preparations and after each validation."""

    def backward(self, loss: Tensor, ctx: object | None) -> None:
        """Backpropagate. ``ctx`` is what the method put into `fvd.Loss`; families whose forward needs context again
        (a global attention state, say) enter it here."""
        loss.backward()

    def join_conditioning(self, parts: Sequence[Conditioning]) -> Conditioning:
        """The conditioning of several batches as that of one, in order: two forwards become one of twice the samples. Only
        where ``joins_conditioning`` says so."""
        self._missing("join_conditioning")

    def supported_attn_kind(self, attn_kind: str) -> str:
        """``attn_kind`` where this adapter has it, else ``dense``, of which the others are approximations."""
        return attn_kind if attn_kind in self.attn_kinds else "dense"

    def bind(self, handle: RoleHandle) -> RoleView:
        """The same verbs with the handle filled in: ``student.predict_x0(x_t, t, cond)``."""
        return RoleView(self, handle)

    def _missing(self, primitive: str) -> NoReturn:
        raise PluginError(
            f"{type(self).__module__}.{type(self).__name__} does not implement the primitive {primitive!r}",
            cure="Its family declares in `provides` what it has; a method may call only what it declares in `needs`.",
        )


@dataclass(frozen=True)
class RoleView:
    """One role's side of an adapter."""

    adapter: Adapter
    handle: RoleHandle

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense") -> Tensor:
        return self._checked("predict", self.adapter.predict, x_t, t, cond, attn_kind)

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense") -> Tensor:
        return self._checked("predict_x0", self.adapter.predict_x0, x_t, t, cond, attn_kind)

    def predict_noise(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense") -> Tensor:
        return self._checked("predict_noise", self.adapter.predict_noise, x_t, t, cond, attn_kind)

    def feature_widths(self) -> tuple[int, ...]:
        return tuple(self.adapter.feature_widths(self.handle))

    def features(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, layers: Sequence[int]) -> list[Tensor]:
        features = self.adapter.features(self.handle, x_t, t, cond, layers=layers)
        return self._checked_features("features", features, x_t, layers)

    def predict_x0_with_features(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, layers: Sequence[int], attn_kind: str = "dense"
    ) -> tuple[Tensor, list[Tensor]]:
        self._check_attention(attn_kind)
        name = "predict_x0_with_features"
        output = self.adapter.predict_x0_with_features(self.handle, x_t, t, cond, layers=layers, attn_kind=attn_kind)
        if not isinstance(output, tuple) or len(output) != 2:
            raise self._broken(name, "return (x0, features)", type(output).__name__)
        x0, features = output
        return self._checked_like(name, x0, x_t), self._checked_features(name, features, x_t, layers)

    def _checked(
        self, name: str, primitive: Callable[..., Tensor], x_t: Tensor, t: Tensor, cond: Conditioning, attn_kind: str
    ) -> Tensor:
        self._check_attention(attn_kind)
        return self._checked_like(name, primitive(self.handle, x_t, t, cond, attn_kind=attn_kind), x_t)

    def _check_attention(self, attn_kind: str) -> None:
        if attn_kind not in self.adapter.attn_kinds:
            raise PluginError(
                f"the family {self.handle.family} has no attention {attn_kind!r}",
                cure=f"It has: {', '.join(sorted(self.adapter.attn_kinds))}. A method asks with supported_attn_kind().",
            )

    def _checked_like(self, name: str, output: Tensor, x_t: Tensor) -> Tensor:
        """A wrong shape would broadcast in a loss and train on nonsense; it costs nothing to look."""
        if isinstance(output, Tensor) and output.shape == x_t.shape and output.dtype == torch.float32:
            return output
        raise self._broken(name, f"return float32 of shape {list(x_t.shape)}", _described(output))

    def _checked_features(self, name: str, features: list[Tensor], x_t: Tensor, layers: Sequence[int]) -> list[Tensor]:
        if not isinstance(features, list) or len(features) != len(layers):
            got = len(features) if isinstance(features, list) else type(features).__name__
            raise self._broken(name, f"return a list of {len(layers)} features", got)
        widths = self.feature_widths()
        for feature, layer in zip(features, layers, strict=True):
            wanted = (len(x_t), widths[layer])
            right = isinstance(feature, Tensor) and feature.ndim == 5 and feature.shape[:2] == wanted
            if not right or feature.dtype != torch.float32:
                raise self._broken(name, f"return float32 of shape [{wanted[0]}, {wanted[1]}, T', H', W']", _described(feature))
        return features

    def _broken(self, name: str, must: str, got: object) -> PluginError:
        adapter = type(self.adapter)
        return PluginError(
            f"{adapter.__module__}.{adapter.__name__}.{name} must {must}, got {got}",
            cure=mistake_in_code(f"the family {self.handle.family}'s"),
        )


def _described(output: object) -> str:
    return f"{list(output.shape)} {output.dtype}" if isinstance(output, Tensor) else type(output).__name__


class FlowMatchingAdapter(Adapter):
    """Everything that follows from ``x_t = (1 − σ) x0 + σ noise`` when the network predicts the velocity.

    A flow-matching family sets ``device`` and ``flow_shift`` and writes `prepare_batch`, `predict` and `decode`.
    """

    num_train_timesteps: int = 1000
    flow_shift: float

    def sigma(self, t: Tensor) -> Tensor:
        """σ(t) = t / num_train_timesteps, float32."""
        return t.float() / self.num_train_timesteps

    def shift_and_clamp_timestep(self, t: Tensor, shift: float | None = None) -> Tensor:
        factor = self.flow_shift if shift is None else shift
        shifted = flow.shift_sigma(self.sigma(t), factor) * self.num_train_timesteps
        return shifted.clamp(0, self.num_train_timesteps)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return flow.add_noise(x0, noise, self.sigma(t))

    def training_target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise.float() - x0.float()

    def predict_x0(self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense") -> Tensor:
        return flow.velocity_to_x0(self.predict(handle, x_t, t, cond, attn_kind=attn_kind), x_t, self.sigma(t))

    def predict_noise(
        self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense"
    ) -> Tensor:
        return flow.velocity_to_noise(self.predict(handle, x_t, t, cond, attn_kind=attn_kind), x_t, self.sigma(t))
