"""A toy family for testing methods: a real network, real gradients, milliseconds a step, no files.

    roles = toy_roles({"student": True, "teacher": False})
    adapter = ToyAdapter(flow_shift=3.0)
    run = toy_run(roles, MyConfig(strength=2.0))
    method = MyMethod.build(run=run, roles=roles, adapter=adapter)
    losses = train_step(method, toy_raw_batch(batch_size=2), iteration=1)

`ToyNetwork` is a velocity network [B, C, T, H, W] -> the same shape with text and timestep conditioning. Every output
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
from fvd.methods import Method
from fvd.rng import StepRandom, derive_seed, randn_per_sample, seeded_generator
from fvd.roles import RoleHandle, RoleManager
from fvd.step_contract import checked_losses, checked_roles_to_update

LATENT_SHAPE = (3, 2, 4, 4)
"""(C, T, H, W) of the toy's latents."""
TEXT_LENGTH, TEXT_WIDTH = 4, 6
NEGATIVE_PROMPT = "blurry"


@dataclass(frozen=True)
class ToyConditioning:
    """embeddings [B, L, D]; mask [B, L], 1 where there is a token."""

    embeddings: Tensor
    mask: Tensor


class ToyNetwork(nn.Module):
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


class ToyAdapter(FlowMatchingAdapter):
    """The flow-matching primitives over a `ToyNetwork`, and the conditioning ones over hashed words. float32, CPU."""

    def __init__(self, *, flow_shift: float = 3.0, latent_shape: tuple[int, int, int, int] = LATENT_SHAPE) -> None:
        self.device = torch.device("cpu")
        self.flow_shift = flow_shift
        self._latent_shape = latent_shape
        self._negative: ToyConditioning | None = None

    def prepare_batch(self, raw_batch: RawBatch, *, latents_source: LatentsSource) -> Batch:
        size = raw_batch.batch_size
        match latents_source:
            case "data":
                latents = raw_batch.tensors["vae_latent"].float()
            case "zeros":
                latents = torch.zeros(size, *self._latent_shape)
            case _:
                raise ValueError(f"latents_source must be 'data' or 'zeros', got {latents_source!r}")
        cond = ToyConditioning(raw_batch.tensors["text_embedding"], raw_batch.tensors["text_embedding_mask"])
        kept = (~raw_batch.dropped).float()
        cond = replace(cond, embeddings=cond.embeddings * expand_to(kept, cond.embeddings))
        return Batch(latents, cond, None if self._negative is None else _repeat(self._negative, size), raw_batch.info)

    def ensure_negative_conditioning(self) -> None:
        self._negative = self.encode_prompts([NEGATIVE_PROMPT])

    def encode_prompts(self, prompts: Sequence[str]) -> ToyConditioning:
        words = [prompt.split()[:TEXT_LENGTH] for prompt in prompts]
        embeddings = torch.zeros(len(prompts), TEXT_LENGTH, TEXT_WIDTH)
        mask = torch.zeros(len(prompts), TEXT_LENGTH)
        for row, sentence in enumerate(words):
            for column, word in enumerate(sentence):
                embeddings[row, column] = torch.randn(TEXT_WIDTH, generator=seeded_generator("toy word", word))
                mask[row, column] = 1
        return ToyConditioning(embeddings, mask)

    def zero_conditioning(self, cond: ToyConditioning) -> ToyConditioning:
        return replace(cond, embeddings=torch.zeros_like(cond.embeddings))

    def predict(self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: ToyConditioning, *, attn_kind: str = "dense") -> Tensor:
        prediction: Tensor = handle.modules["transformer"](x_t.float(), self.sigma(t), cond.embeddings, cond.mask)
        return prediction

    def latent_shape(self, geometry: VideoGeometry) -> tuple[int, int, int, int]:
        return self._latent_shape

    def decode(self, latents: Tensor) -> Tensor:
        """The first three channels, squashed into [0, 1]."""
        return torch.sigmoid(latents[:, :3].float()).cpu()


def _repeat(cond: ToyConditioning, batch_size: int) -> ToyConditioning:
    return ToyConditioning(cond.embeddings.expand(batch_size, -1, -1), cond.mask.expand(batch_size, -1))


def toy_network(*key: int | str) -> ToyNetwork:
    """A `ToyNetwork` whose weights are a function of ``key``; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("toy network", *key))
        return ToyNetwork()


def toy_roles(trainable: Mapping[str, bool], *, seed: int = 0) -> RoleManager:
    """One differently initialised `ToyNetwork` a role; ``trainable`` maps role name -> whether it is trained."""
    handles = [
        RoleHandle(name=name, family="toy", trainable=is_trained, modules={"transformer": toy_network(seed, name)})
        for name, is_trained in trainable.items()
    ]
    for handle in handles:
        handle.apply_trainable()
    return RoleManager(handles)


def toy_run(
    roles: RoleManager,
    method_config: MethodConfig,
    *,
    method: str = "toy",
    flow_shift: float = 3.0,
    training: Mapping[str, object] | None = None,
) -> RunConfig:
    """A parsed run file for these roles. ``training`` overrides keys of the training section."""
    section: dict[str, object] = {"output_dir": "unused", "data_path": "unused", "max_train_steps": 10}
    return RunConfig(
        recipe=Recipe(family="toy", method=method),
        roles={handle.name: RoleConfig(path="unused", trainable=handle.trainable) for handle in roles},
        training=TrainingConfig.model_validate(section | dict(training or {})),
        pipeline_config=PipelineConfig(flow_shift=flow_shift),
        method_config=method_config,
    )


def toy_raw_batch(batch_size: int = 2, *, seed: int = 0, latents: bool = True) -> RawBatch:
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


def toy_random(iteration: int, batch_size: int, *, seed: int = 0, first_position: int = 0) -> StepRandom:
    """The randomness that the trainer would hand to a micro-batch of this iteration."""
    return StepRandom.for_step(
        seed=seed, step=iteration, first_position=first_position, batch_size=batch_size, device=torch.device("cpu")
    )


def train_step(method: Method, raw_batch: RawBatch, iteration: int) -> dict[str, float]:
    """One step without a trainer: backpropagate each loss, step the roles due, zero. Returns losses, metrics and counts
    by name.

    Raises PluginError where a method breaks the contract of a step, as the trainer does.
    """
    logged: dict[str, float] = {}
    rng = toy_random(iteration, raw_batch.batch_size, seed=method.run.training.seed)
    for loss in checked_losses(method, raw_batch, iteration, rng):
        method.adapter.backward(loss.value, loss.ctx)
        logged[loss.name] = float(loss.value.detach())
        logged |= {name: float(value) for name, value in {**loss.metrics, **loss.counts}.items()}
    checked_roles_to_update(method, iteration)
    for optimizer in method.get_optimizers(iteration):
        optimizer.step()
    for lr_scheduler in method.get_lr_schedulers(iteration):
        lr_scheduler.step()
    for handle in method.roles.trainable:
        for optimizer in handle.optimizers.values():
            optimizer.zero_grad()
    method.on_step_end(iteration)
    return logged
