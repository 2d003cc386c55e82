"""Rollouts: how a few-step student comes to the input of the forward that it is trained on.

A ladder is a list of descending timesteps [S]. From pure noise the student is sampled as it will be in use, up to a rung
(backward simulation, DMD2, arXiv:2405.14867, section 4.5); only the forward at that rung carries gradient, and it is the
method's. Randomness comes in as tensors and functions; nothing here draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.distributed
from torch import Tensor

from fvd.flow import expand_to
from fvd.rng import to_device

PredictX0 = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, T, H, W], t [B]) -> x0."""
AddNoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x0, noise, t [B]) -> x_t: the adapter's."""
BetweenSteps = Literal["sde", "ode"]


def implied_noise(add_noise: AddNoise, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The noise with which ``add_noise(x0, noise, t)`` is x_t, float32: (x_t − α x0) / σ for any schedule that is linear in x0
    and noise. t must lie where there is noise, σ > 0; no further forward is needed."""
    x_t, x0 = x_t.float(), x0.float()
    noise_level = add_noise(torch.zeros_like(x_t), torch.ones_like(x_t), t)
    return (x_t - add_noise(x0, torch.zeros_like(x0), t)) / noise_level


def next_x_t(
    between: BetweenSteps,
    add_noise: AddNoise,
    x_t: Tensor,
    x0: Tensor,
    t: Tensor,
    t_next: Tensor,
    fresh_noise: Callable[[], Tensor],
) -> Tensor:
    """x_t at the next rung. ``sde``: x0 noised afresh (multistep sampling of consistency models, Song et al. 2023, algorithm
    1); ``ode``: x0 with the noise that it was predicted from (DDIM, Song et al. 2021; for flow matching, Euler's method)."""
    noise = fresh_noise() if between == "sde" else implied_noise(add_noise, x_t, x0, t)
    return add_noise(x0, noise, t_next)


@torch.no_grad()
def simulate(
    predict_x0: PredictX0,
    add_noise: AddNoise,
    ladder: Tensor,
    noise: Tensor,
    exit_steps: Sequence[int],
    *,
    between: BetweenSteps,
    fresh_noise: Callable[[Sequence[bool]], Tensor],
    early_exit: bool = True,
) -> Tensor:
    """x_t [B, C, T, H, W] that sample b meets at rung ``exit_steps[b]`` when it is sampled from ``noise`` along ``ladder``.

    fresh_noise: is told which samples go on [B], and gives noise for these: what a sample draws depends on its own exit alone.
    early_exit: stop at the last exit step of all samples and ranks, so that every rank makes equally many forwards; else go
    down the whole ladder, as some systems do, and leave the rest aside.
    """
    last = max_over_ranks(max(exit_steps)) if early_exit else len(ladder) - 1
    exits = to_device(torch.tensor(exit_steps), noise.device)
    x_t = at_exit = noise
    for step in range(last):
        t, t_next = ladder[step].expand(len(noise)), ladder[step + 1].expand(len(noise))
        goes_on = [exit_step > step for exit_step in exit_steps]
        x_t = next_x_t(between, add_noise, x_t, predict_x0(x_t, t), t, t_next, partial(fresh_noise, goes_on))
        at_exit = torch.where(expand_to(exits == step + 1, x_t), x_t, at_exit)
    return at_exit


def max_over_ranks(value: int) -> int:
    """The largest ``value`` of all ranks; itself in a run of one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    values: list[int | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return max(found for found in values if found is not None)
