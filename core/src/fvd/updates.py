"""Moving the roles: clip, step where the gradient is finite, and count what happened."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fvd.health import HealthRule
from fvd.health.core_rules import rules_of_role
from fvd.health.movement import UnmovedTensors
from fvd.roles import RoleHandle

CLIPPED_WINDOW = 100
"""Updates of a role over which the share of clipped ones is taken."""


class RoleUpdates:
    """The updates of one trained role. past: the logged metrics of the steps before, in a run that continues: totals and
    windows go on from there."""

    def __init__(self, handle: RoleHandle, past: Sequence[Mapping[str, float]] = ()) -> None:
        self.handle = handle
        total, clipped = f"health/skipped_total_{handle.name}", f"clipped/{handle.name}"
        self.skipped = next((int(metrics[total]) for metrics in reversed(past) if total in metrics), 0)
        self.movement = UnmovedTensors(handle.name)
        self._clipped = deque([bool(metrics[clipped]) for metrics in past if clipped in metrics], maxlen=CLIPPED_WINDOW)

    def health_rules(self) -> list[HealthRule]:
        return [*rules_of_role(self.handle.name, self.handle.max_grad_norm), self.movement]

    def clip(self) -> Tensor | None:
        """The gradient norm before clipping; a tensor, no sync. None where there is no gradient."""
        parameters = [p for p in self.handle.trainable_parameters() if p.grad is not None]
        if not parameters:
            return None
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.handle.max_grad_norm > 0:
            clip_grads_with_norm_(parameters, self.handle.max_grad_norm, norm)
        return norm

    def apply(self, norm: float) -> dict[str, float]:
        """Move the role, unless ``norm`` (before clipping) has NaN or Inf in it: then it keeps its weights and its clock."""
        role = self.handle.name
        metrics = {f"lr/{role}": next(iter(self.handle.optimizers.values())).param_groups[0]["lr"]}
        finite = math.isfinite(norm)
        if finite:
            self.movement.before_step(self.handle)
            self.handle.step()
            metrics |= self.movement.after_step()
        self.skipped += not finite
        metrics[f"skipped/{role}"] = float(not finite)
        metrics[f"health/skipped_total_{role}"] = float(self.skipped)
        if finite and self.handle.max_grad_norm > 0:
            self._clipped.append(norm > self.handle.max_grad_norm)
            metrics[f"clipped/{role}"] = float(self._clipped[-1])
            metrics[f"health/clipped_share_{role}"] = sum(self._clipped) / len(self._clipped)
        return metrics


def zero_gradients(handles: Sequence[RoleHandle]) -> None:
    """Of all roles, also of those that did not move: a loss may have reached them."""
    for handle in handles:
        for optimizer in handle.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
