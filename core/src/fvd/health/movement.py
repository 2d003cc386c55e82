"""Whether an optimizer step changes the weights at all: in low precision, or at a tiny rate, it may round to nothing.

A weight w in a format of p significant bits stays what it is where the step is below |w| 2^-(p+1): in bfloat16 (p = 8) a step
of 1e-5 moves no weight above 0.005, in float32 (p = 24) a step of 1e-9 none above 0.03.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fvd.health.rule import HealthRule
from fvd.roles import RoleHandle

CHECKED_UPDATES = frozenset({1, 10, 100})
"""Of a role's updates at its working rate: early enough to save the run, and late enough for Adam's averages to be there."""
WORKING_RATE = 0.1
"""Share of the full rate from which a warm-up counts as over."""
SAMPLE_SIZE = 64
"""Elements looked at in each tensor."""


@dataclass(frozen=True)
class _Before:
    """A sample of one tensor before a step. live: where its gradient is not zero."""

    parameter: Tensor
    values: Tensor
    live: Tensor


class UnmovedTensors(HealthRule):
    """Looks at a few elements of every tensor of a role before and after some early steps (one more transfer at these steps).

    A tensor is unmoved where less than half of the elements looked at, of those with a gradient, have changed: weights
    near 0 move in any precision. share: of the role's tensors; a few may be large and have tiny gradients in a sound run.
    """

    name = "frozen_parameters"

    def __init__(self, role: str, *, share: float = 0.25) -> None:
        self.role = role
        self.watches = (f"health/unmoved_tensors_{role}",)
        self.fires_when = f"{share:.0%} of the tensors of {role} have a gradient and are not changed by an optimizer step"
        self.remedy = (
            f"Keep master weights in float32, or raise roles.{role}.optimizer.learning_rate: a step smaller than a weight's "
            "rounding changes nothing."
        )
        self._share = share
        self._updates = 0
        self._before: dict[str, _Before] = {}
        self._unmoved: list[str] = []

    @torch.no_grad()
    def before_step(self, handle: RoleHandle) -> None:
        self._before = {}
        if not _at_working_rate(handle):
            return
        self._updates += 1
        if self._updates in CHECKED_UPDATES:
            named = nn.ModuleDict(handle.modules).named_parameters()
            self._before = {
                name: _Before(p, _sample(p).clone(), _sample(p.grad) != 0) for name, p in named if p.grad is not None
            }

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        """The share of unmoved tensors among those with a gradient, at the steps that are looked at."""
        if not self._before:
            return {}
        live = torch.stack([one.live.sum() for one in self._before.values()])
        moved = torch.stack([((_sample(one.parameter) != one.values) & one.live).sum() for one in self._before.values()])
        counts: list[list[int]] = torch.stack([live, moved], dim=1).tolist()
        looked_at = {name: (alive, moves) for name, (alive, moves) in zip(self._before, counts, strict=True) if alive}
        self._before = {}
        self._unmoved = [name for name, (alive, moves) in looked_at.items() if moves < alive / 2]
        return {self.watches[0]: len(self._unmoved) / len(looked_at)} if looked_at else {}

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        share = metrics[self.watches[0]]
        if share < self._share:
            return None
        some = ", ".join(self._unmoved[:3]) + (", …" if len(self._unmoved) > 3 else "")
        return f"an optimizer step of {self.role} left {share:.0%} of its tensors as they were ({some})"


def _at_working_rate(handle: RoleHandle) -> bool:
    groups = [group for optimizer in handle.optimizers.values() for group in optimizer.param_groups]
    return all(group["lr"] >= WORKING_RATE * group.get("initial_lr", group["lr"]) for group in groups)


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLE_SIZE)][:SAMPLE_SIZE]
