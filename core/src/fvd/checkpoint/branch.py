"""A branch: a run that goes on from a checkpoint of another one, with a run file that has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fvd.config.changes import ORDERS_DATA, role_of_optimizer_state


@dataclass(frozen=True)
class Branch:
    """Weights, averages, an optimizer's moments and the count of updates are the checkpoint's; rates, schedules and everything
    else is as the branch's own run file says.

    changes: by dotted key of the run file, the values before and now.
    """

    changes: Mapping[str, tuple[Any, Any]]

    @cached_property
    def fresh_optimizers(self) -> frozenset[str]:
        """The roles whose optimizer is of another class, or has other arguments: what is stored does not fit it."""
        return frozenset(role for key in self.changes if (role := role_of_optimizer_state(key)) is not None)

    def why_data_begin_anew(self, stored_fingerprint: object, fingerprint: str) -> str:
        """Empty where the position in the data can be kept: it counts samples, and so does not depend on the batch size."""
        changed = [key for key in self.changes if key in ORDERS_DATA]
        if changed:
            return f"{', '.join(changed)} changed"
        return "" if stored_fingerprint == fingerprint else "they are not those that the checkpoint was written with"

    def describe(self) -> str:
        if not self.changes:
            return "a branch; the run file says the same"
        return f"a branch. What changed:\n{listed(self.changes)}"


def listed(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """A line for each key, indented, for messages."""
    return "\n".join(f"    {key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())
