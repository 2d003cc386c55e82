"""What a checkpoint holds: tensors (modules, optimizers and averages of trainable roles) and a small JSON description."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from fvd.roles import RoleHandle, RoleManager


def _container(handle: RoleHandle) -> nn.ModuleDict:
    """All modules of a role as one, for names like ``transformer.blocks.0…``."""
    return nn.ModuleDict(handle.modules)


def stepped_optimizers(handle: RoleHandle) -> list[str]:
    """The optimizers that have state. One that never stepped has none, and must have none again after a resume."""
    return [key for key, optimizer in handle.optimizers.items() if optimizer.state]


def module_tensors(handle: RoleHandle) -> dict[str, Any]:
    return {"modules": get_model_state_dict(_container(handle))}


def role_tensors(handle: RoleHandle, optimizer_keys: list[str], *, with_ema: bool) -> dict[str, Any]:
    """Modules and the named optimizers of one role, and its average. For loading, this is also the template that is filled in
    place."""
    container = _container(handle)
    optimizers = {key: get_optimizer_state_dict(container, handle.optimizers[key]) for key in optimizer_keys}
    average = {"ema": dict(handle.ema.tensors)} if handle.ema and with_ema else {}
    return {**module_tensors(handle), "optimizers": optimizers, **average}


def restore_modules(handle: RoleHandle, tensors: dict[str, Any]) -> None:
    set_model_state_dict(_container(handle), tensors["modules"])


def restore_role(handle: RoleHandle, tensors: dict[str, Any]) -> None:
    container = _container(handle)
    for key, state in tensors["optimizers"].items():
        set_optimizer_state_dict(container, handle.optimizers[key], optim_state_dict=state)
    # After the optimizers: filling their state may have run an (empty) step over the parameters.
    set_model_state_dict(container, tensors["modules"])


def averaged_weights(handle: RoleHandle, names: Collection[str]) -> dict[str, Any]:
    """The parameters of these names, themselves: where an average is loaded into a role that is not trained on."""
    return {"ema": {name: p.detach() for name, p in _container(handle).named_parameters() if name in names}}


def lr_scheduler_states(roles: RoleManager) -> dict[str, dict[str, Any]]:
    return {
        handle.name: {key: scheduler.state_dict() for key, scheduler in handle.lr_schedulers.items()}
        for handle in roles.trainable
    }


def restore_lr_schedulers(roles: RoleManager, states: dict[str, dict[str, Any]]) -> None:
    for handle in roles.trainable:
        for key, state in states[handle.name].items():
            handle.lr_schedulers[key].load_state_dict(state)


Settings = dict[str, list[dict[str, Any]]]


def optimizer_settings(handle: RoleHandle) -> Settings:
    """By optimizer and parameter group, all but the parameters: rates, betas, weight decay."""
    return {
        key: [
            copy.deepcopy({name: value for name, value in group.items() if name != "params"})
            for group in optimizer.param_groups
        ]
        for key, optimizer in handle.optimizers.items()
    }


def restore_settings(handle: RoleHandle, settings: Settings) -> None:
    """The optimizers have ``settings`` again, whatever came with their state."""
    for key, optimizer in handle.optimizers.items():
        for group, built in zip(optimizer.param_groups, settings[key], strict=True):
            group.update(built)
