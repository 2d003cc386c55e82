"""The mathematics of variance-preserving diffusion, once, for networks that predict noise, v or x0.

    x_t = α x0 + σ noise        α² + σ² = 1        α² = alphas_cumprod[t]
    v   = α noise − σ x0        (Salimans & Ho 2022, appendix D)

The schedule is the table ``alphas_cumprod`` [N] of the family's diffusers scheduler, and a timestep is an index into it, as
for the network and for the scheduler. Timesteps of fvd are real numbers: between two entries α² is interpolated linearly,
and above N − 1 they mean N − 1. Timestep 0 is the table's first entry, which is a little noisy, not clean.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from fvd.adapters import Adapter, Conditioning
from fvd.errors import ModelError
from fvd.flow import expand_to
from fvd.roles import RoleHandle

PredictionType = Literal["noise", "v", "x0"]
"""What the network's output is."""

DIFFUSERS_NAMES: dict[str, PredictionType] = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}
"""``prediction_type`` of a diffusers scheduler -> ours."""


class DiffusionSchedule:
    """Signal and noise at every timestep, and what a network's output means there. Computed in float64, returned in float32.

    alphas_cumprod: [N], falling strictly from below 1 to 0 or more; the attribute of that name of diffusers' schedulers.
    device: where the timesteps of the run live; default, where the table is.

    Raises ModelError for a table that is none, and for networks that predict noise when the table ends in 0 (zero terminal
    SNR): at α = 0 their output says nothing of x0. Networks that predict v or x0 may be asked there.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: PredictionType, *, device: torch.device | None = None) -> None:
        table = alphas_cumprod.detach().to(device=device, dtype=torch.float64)
        in_range = table.ndim == 1 and len(table) > 1 and bool((table < 1).all()) and bool((table >= 0).all())
        if not in_range or not bool((table.diff() < 0).all()):
            raise ModelError(
                "the noise schedule is no schedule: alphas_cumprod must fall strictly, from below 1 to 0 or more",
                cure="Look at the scheduler's config.json of the model.",
            )
        if prediction_type not in get_args(PredictionType):
            raise ModelError(
                f"prediction_type is {prediction_type!r}", cure=f"It can be: {', '.join(get_args(PredictionType))}."
            )
        if prediction_type == "noise" and table[-1] == 0:
            raise ModelError(
                "the schedule ends in pure noise (zero terminal SNR), where a network that predicts noise says nothing of x0",
                cure="Such models predict v: look at prediction_type in the scheduler's config.json.",
            )
        self.alphas_cumprod = table
        self.prediction_type: PredictionType = prediction_type
        self._from_data_to_noise = torch.cat([table.new_ones(1), table[1:-1], table.new_zeros(1)])

    @classmethod
    def of(cls, scheduler: Any, *, device: torch.device | None = None) -> Self:
        """The schedule of a diffusers scheduler that has ``alphas_cumprod``. Raises ModelError for one it cannot be: of another
        prediction type, or whose x_t is in other units than ``α x0 + σ noise`` (Euler's and its like divide it by α)."""
        name = scheduler.config.prediction_type
        if name not in DIFFUSERS_NAMES:
            raise ModelError(
                f"{type(scheduler).__name__} has prediction_type {name!r}", cure=f"It can be: {', '.join(DIFFUSERS_NAMES)}."
            )
        if not _takes_x_t_as_it_is(scheduler):
            raise ModelError(
                f"{type(scheduler).__name__} has x_t in other units than α x0 + σ noise, which schedule and samplers take",
                cure="Use one that takes it as it is, of the same config: DDIMScheduler, DPMSolverMultistepScheduler, …",
            )
        return cls(scheduler.alphas_cumprod, DIFFUSERS_NAMES[name], device=device)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def clamp(self, t: Tensor) -> Tensor:
        """Timesteps inside the table, [0, N − 1], float32."""
        return t.float().clamp(0, len(self) - 1)

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) at timesteps of any shape, float32."""
        signal = self._interpolated(self.alphas_cumprod, t)
        return signal.sqrt().float(), (1 - signal).sqrt().float()

    def shift(self, t: Tensor, shift: float) -> Tensor:
        """The timestep where σ/α is ``shift`` times what it is at ``t``, float32, for timesteps of any shape.

        The same law as flow matching's shift, which multiplies σ / (1 − σ), and like it one to one: 0 stays 0, N − 1 stays
        N − 1, shifts multiply, the inverse is the shift by 1 / ``shift``. No table begins at pure data, though, and few end in
        pure noise, so their ends would be shifted to inside or outside of it. Here, and nowhere else, timestep 0 counts as
        data (α² = 1) and N − 1 as noise (α² = 0): α² falls linearly from 1 to the second entry, and from the last but one to 0,
        and what the law wants beyond the table's noise levels lies within the last interval.
        """
        signal = self._interpolated(self._from_data_to_noise, t)
        return self._timestep_of(signal / (signal + shift**2 * (1 - signal)))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = α x0 + σ noise, computed in float32, returned in the dtype of ``x0``."""
        alpha, sigma = self._expanded(t, x0)
        return (alpha * x0.float() + sigma * noise.float()).to(x0.dtype)

    def training_target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network regresses to, float32."""
        if self.prediction_type == "noise":
            return noise.float()
        if self.prediction_type == "x0":
            return x0.float()
        alpha, sigma = self._expanded(t, x0)
        return alpha * noise.float() - sigma * x0.float()

    def prediction_to_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean latents that ``prediction`` implies, float32."""
        prediction, x_t = prediction.float(), x_t.float()
        if self.prediction_type == "x0":
            return prediction
        alpha, sigma = self._expanded(t, x_t)
        if self.prediction_type == "noise":
            return (x_t - sigma * prediction) / alpha
        return alpha * x_t - sigma * prediction

    def prediction_to_noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The Gaussian draw that ``prediction`` implies, float32."""
        prediction, x_t = prediction.float(), x_t.float()
        if self.prediction_type == "noise":
            return prediction
        alpha, sigma = self._expanded(t, x_t)
        if self.prediction_type == "x0":
            return (x_t - alpha * prediction) / sigma
        return sigma * x_t + alpha * prediction

    def _expanded(self, t: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.signal_and_noise(t)
        return expand_to(alpha, reference), expand_to(sigma, reference)

    def _interpolated(self, table: Tensor, t: Tensor) -> Tensor:
        """α² of ``table`` at ``t``, float64."""
        position = t.double().clamp(0, len(self) - 1)
        below = position.long().clamp(max=len(self) - 2)
        return torch.lerp(table[below], table[below + 1], position - below)

    def _timestep_of(self, signal: Tensor) -> Tensor:
        """The inverse of the interpolation of `_from_data_to_noise`, float32."""
        table = self._from_data_to_noise
        above = torch.searchsorted(-table, -signal.contiguous()).clamp(1, len(self) - 1)
        left, right = table[above - 1], table[above]
        return self.clamp(above - 1 + (left - signal) / (left - right))


def _takes_x_t_as_it_is(scheduler: Any) -> bool:
    """Whether a diffusers scheduler starts from noise of unit size, and hands x_t to the network as it is."""
    if scheduler.init_noise_sigma != 1:
        return False
    asked, x_t = copy.deepcopy(scheduler), torch.ones(1)
    asked.set_timesteps(10)
    return torch.equal(asked.scale_model_input(x_t, asked.timesteps[0]), x_t)


class DiffusionAdapter(Adapter):
    """Everything that follows from ``x_t = α x0 + σ noise`` for a network that predicts noise, v or x0.

    A family sets ``device``, ``flow_shift`` and ``schedule``, and writes `prepare_batch`, `predict` and `decode`.
    """

    schedule: DiffusionSchedule
    flow_shift: float

    @property
    def num_train_timesteps(self) -> int:  # type: ignore[override]
        """The number of entries of the table, N."""
        return len(self.schedule)

    def shift_and_clamp_timestep(self, t: Tensor, shift: float | None = None) -> Tensor:
        return self.schedule.shift(t, self.flow_shift if shift is None else shift)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.schedule.add_noise(x0, noise, t)

    def training_target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.schedule.training_target(x0, noise, t)

    def predict_x0(self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense") -> Tensor:
        return self.schedule.prediction_to_x0(self.predict(handle, x_t, t, cond, attn_kind=attn_kind), x_t, t)

    def predict_noise(
        self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, attn_kind: str = "dense"
    ) -> Tensor:
        return self.schedule.prediction_to_noise(self.predict(handle, x_t, t, cond, attn_kind=attn_kind), x_t, t)
