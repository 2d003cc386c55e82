"""Euler's method for the flow ODE, with the few methods of a diffusers scheduler that fvd's samplers call."""

from __future__ import annotations

import torch
from torch import Tensor

from fvd.flow import shift_sigma


class FlowEulerScheduler:
    """σ falls from 1 to 0 in equal steps before the shift; x' = x + (σ' − σ) velocity."""

    def __init__(self, num_train_timesteps: int, shift: float) -> None:
        self._num_train_timesteps = num_train_timesteps
        self._shift = shift
        self.timesteps = torch.empty(0)
        self._sigmas: list[float] = []
        self._index = 0

    def set_timesteps(self, num_inference_steps: int, device: torch.device | None = None) -> None:
        evenly = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        sigmas = shift_sigma(evenly, self._shift)
        self._sigmas = sigmas.tolist()
        self.timesteps = (sigmas[:-1] * self._num_train_timesteps).float().to(device)
        self._index = 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._index = begin_index

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The sample at the next noise level; steps are taken in order, so ``timestep`` is not looked at."""
        here, after = self._sigmas[self._index : self._index + 2]
        self._index += 1
        return (sample + (after - here) * model_output,)
