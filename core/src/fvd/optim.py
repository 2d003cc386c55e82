"""Optimizers and learning-rate schedules of roles. `fvd.OptimizerSpec` says them, `Method.build_optimizers` builds them."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from fvd.config.document import yaml_text
from fvd.config.models import RunConfig
from fvd.config.optimization import SETTINGS, OptimizerSettings
from fvd.config.optimizers import EIGHT_BIT_INSTALL, EIGHT_BIT_LIBRARY, MATRICES_ONLY, REFUSED_OPTIMIZERS, is_eight_bit
from fvd.errors import FvdError, did_you_mean

FUSED = frozenset({"Adam", "AdamW", "SGD"})
"""The optimizers whose fused kernels run wherever torch has fused kernels."""
IMPLEMENTATIONS = frozenset({"foreach", "fused", "differentiable"})
"""Arguments of torch that choose how a step is computed, of which it takes one."""
LONGEST_REASON = 300
"""Characters of what a class says when it refuses."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(OptimizerSettings):
    """`OptimizerSettings` that build what they say."""

    @classmethod
    def of(cls, settings: OptimizerSettings) -> Self:
        return cls(**vars(settings))

    def build_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """Fused where torch has a fused kernel for it on the device of ``parameters``. Of learning_rate, betas, eps and
        weight_decay it is given what its class takes.

        Raises FvdError for a class that there is not, and for arguments or parameters that it refuses.
        """
        optimizer_class = find_optimizer(self.name)
        settings = {argument: getattr(self, setting) for setting, argument in taken_settings(optimizer_class).items()}
        if self.name in MATRICES_ONLY and any(parameter.ndim != 2 for parameter in parameters):
            other = next(list(parameter.shape) for parameter in parameters if parameter.ndim != 2)
            message = f"the optimizer {self.name} takes 2D parameters alone, matrices, and there is one of shape {other}"
            raise FvdError(message, cure="Use AdamW.")
        chosen_by_user = not IMPLEMENTATIONS.isdisjoint(self.arguments)
        fused = {"fused": True} if self.name in FUSED and not chosen_by_user and _has_fused_kernels(parameters) else {}
        try:
            return optimizer_class(parameters, **{**fused, **settings, **self.arguments})
        except Exception as error:  # whatever a class says of an argument or a parameter that it cannot use
            raise self._refusal("be made", error) from error

    def try_out(self, device: torch.device) -> None:
        """Build it for one number on ``device``, and move that once: a class may take arguments that its step cannot use.

        Raises FvdError as `build_optimizer` does.
        """
        parameter = nn.Parameter(torch.zeros(1, 1, device=device))
        optimizer = self.build_optimizer([parameter])
        parameter.grad = torch.ones_like(parameter)
        try:
            optimizer.step()
        except Exception as error:
            raise self._refusal("make a step", error) from error

    def _refusal(self, what: str, error: Exception) -> FvdError:
        said = f" with {yaml_text(self.arguments)}" if self.arguments else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0][:LONGEST_REASON]
        return FvdError(f"the optimizer {self.name} cannot {what}{said}: {reason}", cure=_signature(find_optimizer(self.name)))

    def build_lr_scheduler(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """``total_steps``: how often this role will step in the whole run."""
        return LambdaLR(optimizer, lr_multiplier(self, total_steps))


def check_optimizers(config: RunConfig, device: torch.device) -> None:
    """Raise FvdError where a role's optimizer cannot be made or cannot step, before weights are loaded: it is tried on one
    number."""
    for name, role in config.roles.items():
        if role.trainable:
            try:
                OptimizerSpec.of(config.optimizer_of(name)).try_out(device)
            except FvdError as error:
                raise FvdError(f"roles.{name}.optimizer: {error.message}", cure=error.cure) from error


def find_optimizer(name: str) -> Callable[..., Optimizer]:
    """The class of torch.optim, or of the 8-bit library, that a run file names. Raises FvdError."""
    if name in REFUSED_OPTIMIZERS:
        raise FvdError(f"the optimizer {name} cannot train here: {REFUSED_OPTIMIZERS[name]}", cure="Use AdamW.")
    if is_eight_bit(name):
        try:
            module = importlib.import_module(f"{EIGHT_BIT_LIBRARY}.optim")
        except ImportError:
            message = f"the optimizer {name} is of the library {EIGHT_BIT_LIBRARY}, which is not installed here"
            raise FvdError(message, cure=EIGHT_BIT_INSTALL) from None
    else:
        module = torch.optim
    there = {key: value for key, value in vars(module).items() if _is_optimizer(value)}
    if name not in there:
        where = module.__name__
        raise FvdError(
            f"{where} has no optimizer {name!r}{did_you_mean(name, there)}", cure=f"It has: {', '.join(sorted(there))}."
        )
    return there[name]


def taken_settings(optimizer_class: Callable[..., Optimizer]) -> dict[str, str]:
    """Of `SETTINGS` those that a class takes; ``eps`` is one number in ours, and a pair in Adafactor."""
    parameters = inspect.signature(optimizer_class).parameters
    return {
        setting: argument
        for setting, argument in SETTINGS.items()
        if argument in parameters and not (argument == "eps" and isinstance(parameters["eps"].default, tuple))
    }


def lr_multiplier(spec: OptimizerSettings, total_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate before the (n + 1)-th update of the role, n = 0, 1, …

    Everything counts the role's OWN updates: a role that moves at every fifth step of the run warms up over ``lr_warmup_steps``
    of its updates, and its decay ends with its last one. An update that is skipped is none.

    Linear warm-up over ``lr_warmup_steps`` (the first update already has 1 / (warmup + 1)); then the named decay over the
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


def _is_optimizer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer


def _has_fused_kernels(parameters: list[nn.Parameter]) -> bool:
    devices = _get_fused_kernels_supported_devices()
    return all(p.device.type in devices and p.is_floating_point() for p in parameters)


def _signature(optimizer_class: Callable[..., Optimizer]) -> str:
    further = [
        f"{name}: {_default_text(parameter.default)}"
        for name, parameter in inspect.signature(optimizer_class).parameters.items()
        if name not in ("params", *SETTINGS.values())
    ]
    return f"Its further arguments, with their defaults: {', '.join(further)}."


def _default_text(default: object) -> str:
    """As a run file has it."""
    plain = list(default) if isinstance(default, tuple) else default
    return yaml_text(plain) if isinstance(plain, (bool, int, float, str, list, type(None))) else str(default)
