"""Optimizers and learning-rate schedules of roles. A method declares an `OptimizerSpec` a role; the base class builds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from fvd.config.models import LrSchedulerName, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """AdamW and the schedule of its learning rate. Steps count optimizer steps of the role, not of the run."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    lr_scheduler: LrSchedulerName = "constant"
    lr_warmup_steps: int = 0
    lr_num_cycles: int = 1
    lr_power: float = 1.0
    min_lr_ratio: float = 0.0

    @classmethod
    def from_training(cls, training: TrainingConfig) -> OptimizerSpec:
        """What the run file's ``training:`` section says; `dataclasses.replace` changes it for a single role."""
        return cls(
            learning_rate=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            lr_scheduler=training.lr_scheduler,
            lr_warmup_steps=training.lr_warmup_steps,
            lr_num_cycles=training.lr_num_cycles,
            lr_power=training.lr_power,
            min_lr_ratio=training.min_lr_ratio,
        )

    def build_optimizer(self, parameters: list[nn.Parameter]) -> AdamW:
        return AdamW(parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay, eps=self.eps)

    def build_lr_scheduler(self, optimizer: AdamW, total_steps: int) -> LambdaLR:
        """``total_steps``: how often this role will step in the whole run."""
        return LambdaLR(optimizer, lr_multiplier(self, total_steps))


def lr_multiplier(spec: OptimizerSpec, total_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate before the (n + 1)-th step of the role, n = 0, 1, …

    Linear warm-up over ``lr_warmup_steps`` (the first step already has 1 / (warmup + 1)); then the named decay over the
    rest, down to ``min_lr_ratio``.
    """
    warmup = spec.lr_warmup_steps
    decay_steps = max(1, total_steps - warmup)
    floor = spec.min_lr_ratio

    def decay(progress: float) -> float:
        match spec.lr_scheduler:
            case "constant" | "constant_with_warmup":
                return 1.0
            case "linear":
                shape = 1 - progress
            case "cosine":
                shape = 0.5 * (1 + math.cos(math.pi * progress))
            case "cosine_with_restarts":
                cycle = 0.0 if progress >= 1 else (progress * spec.lr_num_cycles) % 1.0
                shape = 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * cycle))
            case "polynomial":
                shape = (1 - progress) ** spec.lr_power
        return floor + (1 - floor) * shape

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return decay(min(1.0, (step - warmup) / decay_steps))

    return multiplier
