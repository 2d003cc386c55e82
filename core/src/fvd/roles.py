"""The participants of a run. A role is a name in the run file; no name is special to core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fvd.ema import Ema
from fvd.errors import FvdError, PluginError, did_you_mean, mistake_in_code


@dataclass
class RoleHandle:
    """One role's modules, whether it is trained, and how: a role has its own optimizers, clipping, schedules and average,
    and a clock of its own, which ticks when it moves.

    modules: ``{"transformer": …}``, and ``"transformer_2"`` where a model has two experts (Wan 2.2).
    optimizers, lr_schedulers: filled by `Method.build_optimizers`; same keys.
    max_grad_norm: what the norm of the role's gradient is clipped to before a step; 0 = not clipped.
    ema: the average of its weights, where the run keeps one.
    updates: how often it has moved.
    """

    name: str
    family: str
    trainable: bool
    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    lr_schedulers: dict[str, LRScheduler] = field(default_factory=dict)
    max_grad_norm: float = 0.0
    ema: Ema | None = None
    updates: int = 0

    def apply_trainable(self) -> Self:
        """Set ``requires_grad`` from ``trainable``, and return the handle. All modules stay in eval mode: nothing here draws
        from dropout."""
        for module in self.modules.values():
            module.requires_grad_(self.trainable)
            module.eval()
        return self

    def step(self) -> None:
        """One update of this role: its optimizers move, its schedules and its average follow, its clock ticks. A step that is
        skipped calls nothing, and so moves no clock."""
        for optimizer in self.optimizers.values():
            optimizer.step()
        for lr_scheduler in self.lr_schedulers.values():
            lr_scheduler.step()
        self.updates += 1
        if self.ema:
            self.ema.update(self.updates)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]


class RoleManager:
    """All roles of a run, by name."""

    def __init__(self, handles: Sequence[RoleHandle]) -> None:
        self._handles = {handle.name: handle for handle in handles}

    def require_roles(self, names: Sequence[str]) -> list[RoleHandle]:
        """The handles of ``names``, in that order. Raises FvdError that lists what is missing and what is there."""
        missing = [name for name in names if name not in self._handles]
        if missing:
            present = ", ".join(self._handles) or "none"
            raise FvdError(
                f"missing role{'s' * (len(missing) > 1)}: {', '.join(missing)} (the run has: {present})",
                cure="Add " + " and ".join(f"`{name}:`" for name in missing) + " under `roles:` of the run file.",
            )
        return [self._handles[name] for name in names]

    def __getitem__(self, name: str) -> RoleHandle:
        """Raises PluginError for a name that the run does not have: the roles of the run file have been checked before, so it
        is the method's code that asks for it."""
        if name not in self._handles:
            present = ", ".join(self._handles) or "none"
            raise PluginError(
                f"the method's code asks for the role {name!r}{did_you_mean(name, self._handles)}; the run has: {present}",
                cure=mistake_in_code("the method's"),
            )
        return self._handles[name]

    def add(self, handle: RoleHandle) -> None:
        """One more role. Raises PluginError for a name that is taken."""
        if handle.name in self._handles:
            raise PluginError(f"there is a role {handle.name!r} already", cure=mistake_in_code("the method's"))
        self._handles[handle.name] = handle

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def __iter__(self) -> Iterator[RoleHandle]:
        return iter(self._handles.values())

    def __len__(self) -> int:
        return len(self._handles)

    @property
    def trainable(self) -> list[RoleHandle]:
        return [handle for handle in self if handle.trainable]
