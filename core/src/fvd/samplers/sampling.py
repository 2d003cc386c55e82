"""From a plan to latents: scheduler, timesteps, initial noise, loop. Validation and `fvd sample` both go through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fvd.errors import FvdError
from fvd.rng import randn_per_sample
from fvd.samplers.guidance import GuidedModel

Sampler = Callable[..., Tensor]
"""See `fvd.samplers` for the signature."""


def sample_latents(
    model: GuidedModel,
    *,
    sampler: Sampler,
    sampler_kind: str,
    shape: Sequence[int],
    steps: int,
    timesteps: Sequence[float] | None,
    seeds: Sequence[int],
) -> Tensor:
    """Latents [B, C, T, H, W] from ``len(seeds)`` = B noises of ``shape`` (C, T, H, W).

    The initial noise of seed n is what ``torch.Generator("cpu").manual_seed(n)`` draws, as in diffusers' pipelines.
    ``timesteps`` given: exactly those, which only samplers that need no solver state take.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = randn_per_sample(shape, generators, device=model.adapter.device)
    scheduler = model.adapter.scheduler(sampler_kind)
    if timesteps is None:
        scheduler.set_timesteps(steps, device=model.adapter.device)
        # Solvers that round timesteps may have equal ones; without this they would look up their place by value.
        scheduler.set_begin_index(0)
        chosen = scheduler.timesteps
    elif sampler_kind == "ode":
        raise FvdError(
            "the sampler `ode` takes a number of steps; its solver places the timesteps itself",
            cure="Use the sampler `sde` for an explicit list of timesteps.",
        )
    else:
        chosen = torch.tensor(timesteps, dtype=torch.float32)
    return sampler(model, latents, scheduler=scheduler, timesteps=chosen, generators=generators)
