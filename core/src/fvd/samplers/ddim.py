"""Sampler ``ddim``: DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 with η = 0) on any list of timesteps.

A first-order solver of the probability-flow ODE, deterministic after the initial noise. For flow matching, where x_t is linear
in σ, it is Euler's method. It is how few-step students are sampled whose training takes such steps between the rungs of the
ladder; on a teacher or a finetuned model it is a solver like others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fvd.rollouts import implied_noise
from fvd.samplers.guidance import GuidedModel


@torch.no_grad()
def sample_ddim(
    model: GuidedModel, latents: Tensor, *, scheduler: Any, timesteps: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """``x0 = predict_x0(x_t); x_t' = add_noise(x0, the noise that x_t has with it, t')``; the last x0 is the result."""
    del scheduler, generators  # it has chosen the timesteps already; nothing is drawn
    x_t = latents
    for index, step in enumerate(timesteps):
        t = step.expand(x_t.shape[0]).to(x_t.device)
        x0 = model.predict_x0(x_t, t)
        if index + 1 == len(timesteps):
            return x0
        noise = implied_noise(model.add_noise, x_t, x0, t)
        x_t = model.add_noise(x0, noise, timesteps[index + 1].expand(x_t.shape[0]).to(x_t.device))
    return x_t
