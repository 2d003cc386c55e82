"""From a plan to latents: scheduler, timesteps, initial noise, loop. Validation and `fvd sample` both go through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from fvd.errors import FvdError, PluginError
from fvd.rng import randn_per_sample
from fvd.samplers.guidance import GuidedModel
from fvd.specs import FamilySpec, SamplerSpec
from fvd.validation.request import SamplingPlan

if TYPE_CHECKING:
    from fvd.plugins import Plugins


@dataclass(frozen=True)
class LoadedSampler:
    """A sampler's descriptor with its function, whose signature `fvd.samplers` describes."""

    spec: SamplerSpec
    function: Callable[..., Tensor]


@runtime_checkable
class CountsSteps(Protocol):
    """A scheduler of diffusers that counts its steps. Others, such as DDIM, need only the timestep."""

    def set_begin_index(self, begin_index: int) -> None: ...


def load_sampler(plugins: Plugins, kind: str) -> LoadedSampler:
    """Raises PluginError for a sampler that is unknown or cannot be loaded."""
    spec = plugins.spec("sampler", kind)
    assert isinstance(spec, SamplerSpec)
    return LoadedSampler(spec, plugins.load("sampler", kind))


def check_plan(plan: SamplingPlan, plugins: Plugins, family: FamilySpec) -> None:
    """Raise FvdError for a plan that cannot be sampled: unknown sampler, no scheduler for it, timesteps it does not take."""
    sampler = plugins.spec("sampler", plan.sampler_kind)
    assert isinstance(sampler, SamplerSpec)
    if sampler.scheduler not in family.samplers:
        raise FvdError(
            f"the sampler {sampler.name} needs a scheduler of kind {sampler.scheduler!r}, which family {family.name} lacks",
            cure=f"It has: {', '.join(sorted(family.samplers)) or 'none'}.",
        )
    if plan.sampling_timesteps is not None and not sampler.takes_timesteps:
        raise _places_its_own_timesteps(sampler)


def sample_latents(
    model: GuidedModel,
    *,
    sampler: LoadedSampler,
    shape: Sequence[int],
    steps: int,
    timesteps: Sequence[float] | None,
    seeds: Sequence[int],
    shift_timesteps: bool = False,
) -> Tensor:
    """Latents [B, C, T, H, W] from ``len(seeds)`` = B noises of ``shape`` (C, T, H, W).

    The initial noise of seed n is what ``torch.Generator("cpu").manual_seed(n)`` draws, as in diffusers' pipelines.
    ``timesteps`` given: exactly those, and ``steps`` does not count; with ``shift_timesteps`` those that the adapter's
    ``shift_and_clamp_timestep`` makes of them. Raises FvdError where the sampler takes none.
    """
    if timesteps is not None and not sampler.spec.takes_timesteps:
        raise _places_its_own_timesteps(sampler.spec)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = randn_per_sample(shape, generators, device=model.adapter.device)
    scheduler = model.adapter.scheduler(sampler.spec.scheduler)
    if timesteps is None:
        scheduler.set_timesteps(steps, device=model.adapter.device)
        if isinstance(scheduler, CountsSteps):
            # Solvers that round timesteps may have equal ones; without this they would look up their place by value.
            scheduler.set_begin_index(0)
        chosen = scheduler.timesteps
    else:
        chosen = torch.tensor(timesteps, dtype=torch.float32)
        if shift_timesteps:
            chosen = model.adapter.shift_and_clamp_timestep(chosen.to(model.adapter.device)).cpu()
    sampled = sampler.function(model, latents, scheduler=scheduler, timesteps=chosen, generators=generators)
    if not isinstance(sampled, Tensor) or sampled.shape != latents.shape:
        got = list(sampled.shape) if isinstance(sampled, Tensor) else type(sampled).__name__
        raise PluginError(f"the sampler {sampler.spec.name} must return latents of shape {list(latents.shape)}, got {got}")
    return sampled


def _places_its_own_timesteps(sampler: SamplerSpec) -> FvdError:
    return FvdError(
        f"the sampler {sampler.name} takes a number of steps; its solver places the timesteps itself",
        cure="Use a sampler that takes a list of timesteps, such as sde or ddim.",
    )
