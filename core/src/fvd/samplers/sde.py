"""Sampler ``sde``: predict x0, noise it again to the next timestep.

Not a solver of the reverse SDE: it is the multistep sampling of consistency models (Song et al. 2023, algorithm 1), made
for few-step students, whose x0 is a sample. On a teacher or a finetuned model x0 is a mean, and the loop then shrinks
the variance of what it makes; use ``ode`` for those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fvd.rng import randn_per_sample
from fvd.samplers.guidance import GuidedModel


@torch.no_grad()
def sample_sde(
    model: GuidedModel, latents: Tensor, *, scheduler: Any, timesteps: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """``x0 = predict_x0(x_t); x_t' = add_noise(x0, fresh noise, t')``; the last x0 is the result."""
    del scheduler  # it has chosen the timesteps already
    x_t = latents
    for index, t in enumerate(timesteps):
        x0 = model.predict_x0(x_t, t.expand(x_t.shape[0]).to(x_t.device))
        if index + 1 == len(timesteps):
            return x0
        noise = randn_per_sample(x0.shape[1:], generators, device=x0.device)
        x_t = model.add_noise(x0, noise, timesteps[index + 1].expand(x_t.shape[0]).to(x_t.device))
    return x_t
