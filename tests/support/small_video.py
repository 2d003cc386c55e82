"""Small videos for tests of core and of methods: a real network, real gradients, milliseconds a step, no files.

    roles = small_roles({"student": True, "teacher": False})
    adapter = SmallVideoAdapter(flow_shift=3.0)
    run = small_run(roles, MyConfig(strength=2.0))
    method = MyMethod.build(run=run, roles=roles, adapter=adapter)
    losses = train_step(method, small_raw_batch(batch_size=2), iteration=1)

`SmallVideoNetwork` is a velocity network [B, C, T, H, W] -> the same shape with text and timestep conditioning. Every output
depends on every input of its own sample and on no other sample; it runs in the dtype of its parameters, so a float64
reference is ``copy.deepcopy(network).double()``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fvd.adapters import Batch, FlowMatchingAdapter, LatentsSource
from fvd.config.models import MethodConfig, PipelineConfig, Recipe, RoleConfig, RunConfig, TrainingConfig
from fvd.data.spec import RawBatch, VideoGeometry
from fvd.flow import expand_to
from fvd.plugins.lock import Lock
from fvd.rng import derive_seed, randn_per_sample, seeded_generator
from fvd.roles import RoleHandle, RoleManager
from fvd.rundir import with_absolute_paths

LATENT_SHAPE = (3, 2, 4, 4)
"""(C, T, H, W) of its latents."""
TEXT_LENGTH, TEXT_WIDTH = 4, 6
NEGATIVE_PROMPT = "blurry"


@dataclass(frozen=True)
class SmallVideoConditioning:
    """embeddings [B, L, D]; mask [B, L], 1 where there is a token."""

    embeddings: Tensor
    mask: Tensor


class SmallVideoNetwork(nn.Module):
    """A velocity: a two-layer network at each position, with the sample's mean, its text and sigma mixed in.

    forward: x_t [B, C, T, H, W], sigma [B], embeddings [B, L, D], mask [B, L] -> [B, C, T, H, W].
    """

    def __init__(self, channels: int = LATENT_SHAPE[0], hidden: int = 16, text_width: int = TEXT_WIDTH) -> None:
        super().__init__()
        self.position = nn.Linear(channels, hidden)
        self.mean = nn.Linear(channels, hidden)
        self.text = nn.Linear(text_width, hidden)
        self.time = nn.Linear(2, hidden)
        self.out = nn.Linear(hidden, channels)

    def forward(self, x_t: Tensor, sigma: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
        x = x_t.movedim(1, -1)
        tokens = mask.sum(dim=1, keepdim=True).clamp(min=1)
        pooled_text = (embeddings * mask[..., None]).sum(dim=1) / tokens
        time = torch.stack([sigma, torch.cos(torch.pi * sigma)], dim=1)
        per_sample = self.mean(x.mean(dim=(1, 2, 3))) + self.text(pooled_text) + self.time(time)
        hidden = torch.tanh(self.position(x) + per_sample[:, None, None, None, :])
        velocity: Tensor = self.out(hidden).movedim(-1, 1)
        return velocity


class SmallVideoAdapter(FlowMatchingAdapter):
    """The flow-matching primitives over a `SmallVideoNetwork`, and the conditioning ones over hashed words. float32, CPU."""

    joins_conditioning = True

    def __init__(self, *, flow_shift: float = 3.0, latent_shape: tuple[int, int, int, int] = LATENT_SHAPE) -> None:
        self.device = torch.device("cpu")
        self.flow_shift = flow_shift
        self._latent_shape = latent_shape
        self._negative: SmallVideoConditioning | None = None

    def prepare_batch(self, raw_batch: RawBatch, *, latents_source: LatentsSource) -> Batch:
        size = raw_batch.batch_size
        match latents_source:
            case "data":
                latents = raw_batch.tensors["vae_latent"].float()
            case "zeros":
                latents = torch.zeros(size, *self._latent_shape)
            case _:
                raise ValueError(f"latents_source must be 'data' or 'zeros', got {latents_source!r}")
        cond = SmallVideoConditioning(raw_batch.tensors["text_embedding"], raw_batch.tensors["text_embedding_mask"])
        kept = (~raw_batch.dropped).float()
        cond = replace(cond, embeddings=cond.embeddings * expand_to(kept, cond.embeddings))
        return Batch(latents, cond, None if self._negative is None else _repeat(self._negative, size), raw_batch.info)

    def ensure_negative_conditioning(self) -> None:
        self._negative = self.encode_prompts([NEGATIVE_PROMPT])

    def encode_prompts(self, prompts: Sequence[str]) -> SmallVideoConditioning:
        words = [prompt.split()[:TEXT_LENGTH] for prompt in prompts]
        embeddings = torch.zeros(len(prompts), TEXT_LENGTH, TEXT_WIDTH)
        mask = torch.zeros(len(prompts), TEXT_LENGTH)
        for row, sentence in enumerate(words):
            for column, word in enumerate(sentence):
                embeddings[row, column] = torch.randn(TEXT_WIDTH, generator=seeded_generator("toy word", word))
                mask[row, column] = 1
        return SmallVideoConditioning(embeddings, mask)

    def zero_conditioning(self, cond: SmallVideoConditioning) -> SmallVideoConditioning:
        return replace(cond, embeddings=torch.zeros_like(cond.embeddings))

    def join_conditioning(self, parts: Sequence[SmallVideoConditioning]) -> SmallVideoConditioning:
        embeddings, mask = (torch.cat(tensors) for tensors in zip(*((p.embeddings, p.mask) for p in parts), strict=True))
        return SmallVideoConditioning(embeddings, mask)

    def predict(
        self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: SmallVideoConditioning, *, attn_kind: str = "dense"
    ) -> Tensor:
        prediction: Tensor = handle.modules["transformer"](x_t.float(), self.sigma(t), cond.embeddings, cond.mask)
        return prediction

    def latent_shape(self, geometry: VideoGeometry) -> tuple[int, int, int, int]:
        return self._latent_shape

    def decode(self, latents: Tensor) -> Tensor:
        """The first three channels, squashed into [0, 1]."""
        return torch.sigmoid(latents[:, :3].float()).cpu()


def _repeat(cond: SmallVideoConditioning, batch_size: int) -> SmallVideoConditioning:
    return SmallVideoConditioning(cond.embeddings.expand(batch_size, -1, -1), cond.mask.expand(batch_size, -1))


def small_network(*key: int | str) -> SmallVideoNetwork:
    """A `SmallVideoNetwork` whose weights are a function of ``key``; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("toy network", *key))
        return SmallVideoNetwork()


def small_roles(trainable: Mapping[str, bool], *, seed: int = 0) -> RoleManager:
    """One differently initialised `SmallVideoNetwork` a role; ``trainable`` maps role name -> whether it is trained."""
    handles = [
        RoleHandle(name=name, family="small_video", trainable=is_trained, modules={"transformer": small_network(seed, name)})
        for name, is_trained in trainable.items()
    ]
    for handle in handles:
        handle.apply_trainable()
    return RoleManager(handles)


def small_run(
    roles: RoleManager,
    method_config: MethodConfig,
    *,
    method: str = "small_method",
    flow_shift: float = 3.0,
    training: Mapping[str, object] | None = None,
) -> RunConfig:
    """A parsed run file for these roles. ``training`` overrides keys of the training section."""
    section: dict[str, object] = {"output_dir": "unused", "data_path": "unused", "max_train_steps": 10}
    return RunConfig(
        recipe=Recipe(family="small_video", method=method),
        roles={handle.name: RoleConfig(path="unused", trainable=handle.trainable) for handle in roles},
        training=TrainingConfig.model_validate(section | dict(training or {})),
        pipeline_config=PipelineConfig(flow_shift=flow_shift),
        method_config=method_config,
    )


def small_lock(run: RunConfig) -> Lock:
    """The lock of a run whose plugins do not matter."""
    return Lock(fvd_core="0", python="3", torch="2", plugins=(), packages={}, run_file=with_absolute_paths(run.as_document()))


def small_raw_batch(batch_size: int = 2, *, seed: int = 0, latents: bool = True) -> RawBatch:
    """What a loader would yield: sample b depends on (seed, b) only. ``latents=False``: text-only data."""
    generators = [seeded_generator("toy data", seed, position) for position in range(batch_size)]
    cpu = torch.device("cpu")
    tensors = {
        "text_embedding": randn_per_sample((TEXT_LENGTH, TEXT_WIDTH), generators, device=cpu),
        "text_embedding_mask": torch.ones(batch_size, TEXT_LENGTH),
    }
    if latents:
        tensors["vae_latent"] = randn_per_sample(LATENT_SHAPE, generators, device=cpu)
    info: list[dict[str, object]] = [{"id": f"toy-{position}"} for position in range(batch_size)]
    return RawBatch(tensors, torch.zeros(batch_size, dtype=torch.bool), info)
