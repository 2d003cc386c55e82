"""A method on a toy family, without a run file: for the tests of a method's author.

    family = toy_family()
    method = toy_method(MyMethod, MyConfig(), {"student": True, "teacher": False}, family=family)
    batch = toy_batch(family, 64)
    losses = [train_step(method, batch, iteration) for iteration in range(1, 101)]      # fvd.testing.steps
    points = toy_samples(method.adapter, method.roles["student"], 1000)
    energy_distance(points, family.mixture.sample(1000, torch.Generator().manual_seed(0)))

With ``toy_family(predicts="noise")`` it is `fvd.testing.toy_noise`. `toy_run_samples` gives the points of what `fvd run` has
trained. Everything is on the CPU in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

import fvd
from fvd.config.models import Recipe
from fvd.data.loader import collate
from fvd.inference import open_run
from fvd.made_roles import add_made_roles
from fvd.plugins import PluginOptions
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.ode import sample_ode
from fvd.samplers.sampling import load_sampler, sample_latents
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.data import CHUNK_SIZE, CHUNKS, open_points
from fvd.testing.toy.family import MixtureFamily, ToyFamily
from fvd.testing.toy_noise.family import ToyNoiseFamily

_ANY_SIZE = fvd.VideoGeometry(num_frames=1, height=1, width=1)

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
    roles: Mapping[str, Mapping[str, object]] | None = None,
    made: Sequence[str] = (),
) -> AnyMethod:
    """A built method. Trained roles are random networks, all equal at first; frozen ones are the exact denoiser.

    trainable: role name -> whether it is trained. training: keys of that section of a run file. roles: of a role, what a run
    file would say besides, ``{"critic": {"path": "random:1", "optimizer": {"learning_rate": 1e-3}}}``. made: the roles that
    the method makes itself.
    """
    family = family or toy_family()
    said = {
        name: {"path": "random" if trained else "analytic", "trainable": trained} for name, trained in trainable.items()
    } | {name: {"trainable": True} for name in made}
    run = fvd.RunConfig(
        recipe=Recipe(family=family.name, method="under_test"),
        roles={name: fvd.RoleConfig.model_validate({**role, **(roles or {}).get(name, {})}) for name, role in said.items()},
        training=fvd.TrainingConfig.model_validate({"output_dir": "unused", "max_train_steps": 100} | dict(training or {})),
        pipeline_config=family.config,
        method_config=method_config,
    )
    handles = fvd.RoleManager([family.load_role(name, role) for name, role in run.roles.items() if role.path])
    adapter = family.build_adapter(handles)
    latent_shape = adapter.latent_shape(_ANY_SIZE)
    add_made_roles(made, method_class, run=run, roles=handles, adapter=adapter, latent_shape=latent_shape)
    method = method_class.build(run=run, roles=handles, adapter=adapter)
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
    shape = adapter.latent_shape(_ANY_SIZE)
    scheduler = adapter.scheduler("ode")
    scheduler.set_timesteps(steps, device=adapter.device)
    latents = torch.randn(count, *shape, generator=generator).to(adapter.device)
    model = GuidedModel(adapter, handle, adapter.encode_prompts([prompt] * count), None)
    sampled = sample_ode(model, latents, scheduler=scheduler, timesteps=scheduler.timesteps, generators=[])
    return sampled.flatten(1).cpu()


def toy_run_samples(run_dir: str | Path, count: int, *, prompt: str = "", plugin_files: Sequence[str] = ()) -> Tensor:
    """Points [count, D] that the newest checkpoint in a run directory makes, sampled as its method says (as `fvd sample` does
    with the seeds 0 to ``count - 1``); the empty prompt is the whole mixture.

    plugin_files: what the run was given as ``--plugin``. Raises FvdError for a folder that is no run of a toy family.
    """
    options = PluginOptions(files=tuple(plugin_files))
    run = open_run(Path(run_dir), device=torch.device("cpu"), options=options)
    if not isinstance(run.family, MixtureFamily):
        raise fvd.FvdError(f"{run_dir} is a run of the family {run.config.recipe.family}, which is no toy")
    plan = run.sampling_plan
    handle = run.load_role(plan.role, run.weights_of(plan.role, None))
    adapter = run.family.build_adapter(fvd.RoleManager([handle]))
    adapter.ensure_negative_conditioning()
    cond, uncond = adapter.encode_prompts([prompt] * count), adapter.negative_conditioning(count)
    points = sample_latents(
        GuidedModel(adapter, handle, cond, uncond, plan.guidance_scale),
        sampler=load_sampler(run.plugins, plan.sampler_kind),
        shape=adapter.latent_shape(_ANY_SIZE),
        steps=plan.sampling_steps[0],
        timesteps=plan.sampling_timesteps,
        shift_timesteps=plan.shift_timesteps,
        seeds=range(count),
    )
    return points.flatten(1)
