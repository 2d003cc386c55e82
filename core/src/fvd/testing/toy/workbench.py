"""A method on a toy family, without a run file: for the tests of a method's author.

    family = toy_family()
    method = toy_method(MyMethod, MyConfig(), {"student": True, "teacher": False}, family=family)
    batch = toy_batch(family, 64)
    losses = [train_step(method, batch, iteration) for iteration in range(1, 101)]      # fvd.testing.steps
    points = toy_samples(method.adapter, method.roles["student"], 1000)
    energy_distance(points, family.mixture.sample(1000, torch.Generator().manual_seed(0)))

With ``toy_family(predicts="noise")`` it is `fvd.testing.toy_noise`. Everything is on the CPU in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

import torch
from torch import Tensor

import fvd
from fvd.config.models import Recipe
from fvd.data.loader import collate
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.ode import sample_ode
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.data import CHUNK_SIZE, CHUNKS, open_points
from fvd.testing.toy.family import MixtureFamily, ToyFamily
from fvd.testing.toy_noise.family import ToyNoiseFamily

AnyMethod = TypeVar("AnyMethod", bound=fvd.Method)


def toy_family(predicts: Literal["velocity", "noise"] = "velocity", *, config: ToyConfig | None = None) -> MixtureFamily:
    """A toy family as core would make it; ``family.mixture`` is the truth."""
    context = fvd.FamilyContext(config=config or ToyConfig(), components_path="", device=torch.device("cpu"))
    return ToyFamily(context) if predicts == "velocity" else ToyNoiseFamily(context)


def toy_method(
    method_class: type[AnyMethod],
    method_config: fvd.MethodConfig,
    trainable: Mapping[str, bool],
    *,
    family: MixtureFamily | None = None,
    training: Mapping[str, object] | None = None,
) -> AnyMethod:
    """A built method. Trained roles are random networks, all equal at first; frozen ones are the exact denoiser.

    trainable: role name -> whether it is trained. training: keys of that section of a run file.
    """
    family = family or toy_family()
    run = fvd.RunConfig(
        recipe=Recipe(family=family.name, method="under_test"),
        roles={
            name: fvd.RoleConfig(path="random" if trained else "analytic", trainable=trained)
            for name, trained in trainable.items()
        },
        training=fvd.TrainingConfig.model_validate({"output_dir": "unused", "max_train_steps": 100} | dict(training or {})),
        pipeline_config=family.config,
        method_config=method_config,
    )
    roles = fvd.RoleManager([family.load_role(name, role) for name, role in run.roles.items()])
    method = method_class.build(run=run, roles=roles, adapter=family.build_adapter(roles))
    method.on_train_start()
    return method


def toy_batch(family: MixtureFamily, batch_size: int, *, first: int = 0) -> fvd.RawBatch:
    """What the loader would yield: points ``first`` to ``first + batch_size``, beginning again after the last."""
    points = open_points([], family.data_spec(), needs_latents=True)
    chunks = range(first // CHUNK_SIZE, (first + batch_size - 1) // CHUNK_SIZE + 1)
    samples = [sample for chunk in chunks for sample in points.read_chunk(chunk % CHUNKS)]
    offset = first % CHUNK_SIZE
    return collate(samples[offset : offset + batch_size], family.data_spec(), dropped=torch.zeros(batch_size, dtype=torch.bool))


def toy_samples(
    adapter: fvd.Adapter, handle: fvd.RoleHandle, count: int, *, prompt: str = "", steps: int = 50, seed: int = 0
) -> Tensor:
    """Points [count, D] that a role makes with the ``ode`` sampler; the empty prompt is the whole mixture."""
    generator = torch.Generator().manual_seed(seed)
    shape = adapter.latent_shape(fvd.VideoGeometry(num_frames=1, height=1, width=1))
    scheduler = adapter.scheduler("ode")
    scheduler.set_timesteps(steps, device=adapter.device)
    latents = torch.randn(count, *shape, generator=generator).to(adapter.device)
    model = GuidedModel(adapter, handle, adapter.encode_prompts([prompt] * count), None)
    sampled = sample_ode(model, latents, scheduler=scheduler, timesteps=scheduler.timesteps, generators=[])
    return sampled.flatten(1).cpu()
