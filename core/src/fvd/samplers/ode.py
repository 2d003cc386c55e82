"""Sampler ``ode``: the scheduler's own step on the network's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fvd.samplers.guidance import GuidedModel


@torch.no_grad()
def sample_ode(
    model: GuidedModel, latents: Tensor, *, scheduler: Any, timesteps: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """Integrate the probability-flow ODE with whatever solver ``scheduler`` is (UniPC, Euler, …)."""
    del generators  # deterministic after the initial noise
    for t in timesteps:
        prediction = model.predict(latents, t.expand(latents.shape[0]).to(latents.device))
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    return latents
