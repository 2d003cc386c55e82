"""The toy that predicts noise: schedule, exact denoiser, solver."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fvd
from fvd.diffusion import DiffusionAdapter, DiffusionSchedule
from fvd.testing.toy.adapter import MixtureAdapter, check_scheduler
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.family import MixtureFamily
from fvd.testing.toy.mixture import GaussianMixture
from fvd.testing.toy.network import Parametrisation

NUM_TRAIN_TIMESTEPS = 1000


def linear_schedule(device: torch.device | None = None) -> DiffusionSchedule:
    """DDPM's: betas from 1e-4 to 0.02 in equal steps (Ho et al. 2020)."""
    betas = torch.linspace(1e-4, 0.02, NUM_TRAIN_TIMESTEPS, dtype=torch.float64)
    return DiffusionSchedule((1 - betas).cumprod(dim=0), "noise", device=device)


class DdpmNoise:
    """x_t = α x0 + σ noise; the network predicts the noise."""

    def __init__(self, schedule: DiffusionSchedule) -> None:
        self._schedule = schedule

    def signal_and_noise(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return self._schedule.signal_and_noise(time * NUM_TRAIN_TIMESTEPS)

    def prediction(self, x0: Tensor, noise: Tensor) -> Tensor:
        return noise


class DdimScheduler:
    """Deterministic DDIM (Song et al. 2021): x' = α' x0 + σ' noise, ending in x0 itself. Timesteps fall from N − 1 in equal
    steps before the shift. It has the methods of a diffusers scheduler that fvd's samplers call."""

    def __init__(self, schedule: DiffusionSchedule, shift: float) -> None:
        self._schedule = schedule
        self._shift = shift
        self.timesteps = torch.empty(0)
        self._index = 0

    def set_timesteps(self, num_inference_steps: int, device: torch.device | None = None) -> None:
        last = len(self._schedule) - 1
        evenly = torch.linspace(last, 0, num_inference_steps + 1, device=device)[:-1]
        self.timesteps = self._schedule.shift(evenly, self._shift)
        self._index = 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._index = begin_index

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The sample at the next noise level; steps are taken in order, so ``timestep`` is not looked at."""
        here = self.timesteps[self._index : self._index + 1].to(sample.device).expand(sample.shape[0])
        x0 = self._schedule.prediction_to_x0(model_output, sample, here)
        self._index += 1
        if self._index == len(self.timesteps):
            return (x0,)
        after = self.timesteps[self._index : self._index + 1].to(sample.device).expand(sample.shape[0])
        return (self._schedule.add_noise(x0, model_output, after),)


class ToyNoiseAdapter(MixtureAdapter, DiffusionAdapter):
    """A DDPM schedule: the networks predict noise."""

    def __init__(self, context: fvd.FamilyContext, config: ToyConfig, mixture: GaussianMixture) -> None:
        super().__init__(context, config, mixture)
        self.schedule = linear_schedule(context.device)

    def scheduler(self, kind: str) -> Any:
        check_scheduler(kind)
        return DdimScheduler(self.schedule, self.flow_shift)


class ToyNoiseFamily(MixtureFamily):
    """Variance-preserving diffusion."""

    name = "toy_noise"

    def parametrisation(self) -> Parametrisation:
        return DdpmNoise(linear_schedule(self.context.device))

    def build_adapter(self, roles: fvd.RoleManager) -> MixtureAdapter:
        return ToyNoiseAdapter(self.context, self.config, self.mixture)
