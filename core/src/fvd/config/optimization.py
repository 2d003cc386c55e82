"""How each role is optimized: what the run file may say of it, and what follows. No torch here.

Four places may say a setting of a role's optimizer; the first that does counts:

1. ``roles.<role>.optimizer.<key>`` in the run file,
2. ``training.<key>`` in the run file (`IN_TRAINING`), for every role,
3. `MethodConfig.role_defaults`: what the method, or one of its presets, knows to be right for this role,
4. the default of `TrainingConfig`.

An EMA of a role's weights is said in ``roles.<role>.ema``, or by the method's ``role_defaults``; else there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from fvd.config.strict import Betas, LrSchedulerName, StrictModel

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(StrictModel):
    """Optimizer and learning-rate schedule of one role. What is not given is as ``training:`` says, or the method."""

    name: str | None = None
    """A class of torch.optim, such as AdamW or SGD; with the extra `fvd-core[8bit]` AdamW8bit too."""
    learning_rate: NonNegativeFloat | None = None
    """After the warm-up."""
    betas: Betas | None = None
    """Of optimizers that have them."""
    eps: NonNegativeFloat | None = None
    """Of optimizers that have it."""
    weight_decay: NonNegativeFloat | None = None
    """Of optimizers that have it."""
    arguments: dict[str, Any] | None = None
    """Further arguments of the optimizer's class, {momentum: 0.9}."""
    max_grad_norm: NonNegativeFloat | None = None
    """The role's gradient norm is clipped to this; 0 = no clipping."""
    lr_scheduler: LrSchedulerName | None = None
    """How the learning rate decays after the warm-up, over the rest of the role's own updates."""
    lr_warmup_steps: NonNegativeInt | None = None
    """Updates of the role in which its learning rate rises linearly."""
    lr_num_cycles: NonNegativeInt | None = None
    """cosine_with_restarts: number of cycles."""
    lr_power: NonNegativeFloat | None = None
    """polynomial: the exponent."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """What the learning rate decays to, as a share of it."""


IN_TRAINING: Mapping[str, str] = {
    name: {"name": "optimizer", "arguments": "optimizer_arguments"}.get(name, name) for name in OptimizerConfig.model_fields
}
"""Each key of ``roles.<role>.optimizer:``, and the key under ``training:`` that says it for every role."""


SETTINGS: Mapping[str, str] = MappingProxyType(
    {"learning_rate": "lr", "betas": "betas", "eps": "eps", "weight_decay": "weight_decay"}
)
"""Keys of ``roles.<role>.optimizer:`` that an optimizer is given where its class takes them, and what it calls them."""

_COMMON = frozenset({"lr", "weight_decay", "foreach", "maximize", "capturable", "differentiable"})
_ADAM = _COMMON | {"betas", "eps"}
_ADAM_8BIT = frozenset({"lr", "betas", "eps", "weight_decay", "min_8bit_size"})

KNOWN_OPTIMIZERS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "Adadelta": _COMMON | {"rho", "eps"},
        "Adafactor": _COMMON - {"capturable", "differentiable"} | {"beta2_decay", "d"},  # its eps is a pair
        "Adagrad": _COMMON - {"capturable"} | {"eps", "lr_decay", "initial_accumulator_value", "fused"},
        "Adam": _ADAM | {"amsgrad", "fused", "decoupled_weight_decay"},
        "AdamW": _ADAM | {"amsgrad", "fused"},
        "Adamax": _ADAM,
        "ASGD": _COMMON | {"lambd", "alpha", "t0"},
        "Muon": frozenset({"lr", "weight_decay", "eps", "momentum", "nesterov", "ns_coefficients", "ns_steps", "adjust_lr_fn"}),
        "NAdam": _ADAM | {"momentum_decay", "decoupled_weight_decay"},
        "RAdam": _ADAM | {"decoupled_weight_decay"},
        "RMSprop": _COMMON | {"eps", "alpha", "momentum", "centered"},
        "Rprop": _COMMON - {"weight_decay"} | {"etas", "step_sizes"},
        "SGD": _COMMON - {"capturable"} | {"momentum", "dampening", "nesterov", "fused"},
        "Adam8bit": _ADAM_8BIT,
        "AdamW8bit": _ADAM_8BIT,
        "Lion8bit": _ADAM_8BIT - {"eps"},
        "PagedAdam8bit": _ADAM_8BIT,
        "PagedAdamW8bit": _ADAM_8BIT,
        "PagedLion8bit": _ADAM_8BIT - {"eps"},
    }
)
"""The optimizers of torch.optim that train dense networks, then those of the extra ``8bit``, and what each takes. A newer torch
may have others; a test compares."""


_FLAGS = (
    *("amsgrad", "capturable", "centered", "decoupled_weight_decay", "differentiable", "foreach", "fused", "maximize"),
    "nesterov",
)
_NUMBERS = (
    *("alpha", "beta2_decay", "d", "dampening", "initial_accumulator_value", "lambd", "lr_decay", "min_8bit_size"),
    *("momentum", "momentum_decay", "ns_steps", "rho", "t0"),
)

ARGUMENT_KINDS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(_FLAGS, "true or false"),
        **dict.fromkeys(_NUMBERS, "a number"),
        **dict.fromkeys(("etas", "step_sizes"), "a list of 2 numbers"),
        "ns_coefficients": "a list of 3 numbers",
        "adjust_lr_fn": "a word",
    }
)
"""What an argument of a known optimizer is, but for those that are settings."""

MAY_BE_NULL = frozenset({"foreach", "fused", "adjust_lr_fn"})
"""Arguments that torch decides for itself where they are null."""


def is_of_kind(value: object, kind: str) -> bool:
    """kind: one of `ARGUMENT_KINDS`."""
    match kind:
        case "true or false":
            return isinstance(value, bool)
        case "a word":
            return isinstance(value, str)
        case "a number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case _:
            numbers = value if isinstance(value, (list, tuple)) else ()
            return f"a list of {len(numbers)} numbers" == kind and all(is_of_kind(number, "a number") for number in numbers)


def takes_setting(optimizer: str, setting: str) -> bool:
    """Whether an optimizer is given this key of ``roles.<role>.optimizer:``; of one that is not known, it is assumed."""
    return setting not in SETTINGS or SETTINGS[setting] in KNOWN_OPTIMIZERS.get(optimizer, SETTINGS.values())


class EmaConfig(StrictModel):
    """An exponential moving average of one role's weights, on the clock of that role's own updates."""

    decay: Decay | None = None
    """average = decay * average + (1 - decay) * weights after every update of the role; default 0.999."""
    start_step: NonNegativeInt | None = None
    """Until so many updates of the role the average is the weights; default 0."""


class RoleDefaults(StrictModel):
    """What a method knows to be right for one role. What it leaves out is as core has it."""

    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig | None = None
    """None: no average, unless the run file asks for one."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """`OptimizerConfig` with nothing left open. Steps count the role's own updates, not those of the run."""

    learning_rate: float
    name: str = "AdamW"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    max_grad_norm: float = 1.0
    lr_scheduler: LrSchedulerName = "constant"
    lr_warmup_steps: int = 0
    lr_num_cycles: int = 1
    lr_power: float = 1.0
    min_lr_ratio: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EmaSettings:
    """`EmaConfig` with nothing left open."""

    decay: float = 0.999
    start_step: int = 0


def given(config: StrictModel) -> dict[str, Any]:
    """The keys of ``config`` that say something: an explicit 0 does, None does not."""
    return {name: value for name, value in config if value is not None}
