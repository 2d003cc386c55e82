"""The alarms that hold for every method."""

from __future__ import annotations

from collections.abc import Mapping

from fvd.health.rule import HealthRule
from fvd.health.series import RecentMedian, Rise

MAX_SKIPPED_IN_A_ROW = 10
"""So many non-finite steps of one role in a row end the run: it does not recover by itself."""


class NonFiniteGradient(HealthRule):
    """A role whose gradient has NaN or infinite numbers in it keeps its weights."""

    name = "non_finite"
    remedy = (
        "Look at the losses and gradient norms of the steps before it. Lower the role's learning rate and go on from a "
        "checkpoint before it (--resume CHECKPOINT, with a new training.output_dir); look for broken samples in the data, and "
        "for weights that are not finite in the model that the run started from."
    )

    def __init__(self, role: str, *, ends_run_after: int = MAX_SKIPPED_IN_A_ROW) -> None:
        self.role = role
        self.watches = (f"skipped/{role}",)
        self.fires_when = f"a gradient of {role} is not finite; {ends_run_after} in a row end the run"
        self.ends_run_after = ends_run_after

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        if not metrics[self.watches[0]]:
            return None
        return f"the gradient of {self.role} is not finite, and its weights keep their values"


class AlwaysClipped(HealthRule):
    """The clip, not the gradient, sets the size of a role's updates.

    share: of the recent updates that were clipped. excess: a norm that is always somewhat above the clip is usual where the
    clip is tight, and Adam does not mind; it is a symptom where the median norm is many times the clip: of a rate too high, a
    loss on a wrong scale, or a clip from another system. window: updates for the median; nothing is said before.
    """

    name = "clipping"

    def __init__(
        self, role: str, max_grad_norm: float, *, share: float = 0.95, excess: float = 10.0, window: int = 100
    ) -> None:
        self.role = role
        self.watches = (f"health/clipped_share_{role}", f"grad_norm/{role}")
        self.fires_when = f"{share:.0%} of {window} updates are clipped, and the median norm is {excess:g} times the clip"
        self.remedy = (
            f"If the loss still falls, raise roles.{role}.optimizer.max_grad_norm to what the norms are; "
            "if it does not, lower the learning rate. Either can be done in mid-run: --resume CHECKPOINT, with a new "
            "training.output_dir."
        )
        self._max_grad_norm, self._share, self._excess = max_grad_norm, share, excess
        self._norm = RecentMedian(window)

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        share, norm = (metrics[name] for name in self.watches)
        self._norm.add(norm)
        if not self._norm.full or share < self._share or self._norm.value < self._excess * self._max_grad_norm:
            return None
        return (
            f"{share:.0%} of the last updates of {self.role} were clipped: the median norm is {self._norm.value:.3g}, "
            f"the clip {self._max_grad_norm:g}"
        )


class Exploding(HealthRule):
    """A loss or a gradient norm is far above what it was. factor: see `Rise`; 10 is out of reach for noise and for learning."""

    remedy = (
        "Lower the learning rate and go on from a checkpoint before the rise (--resume CHECKPOINT, with a new "
        "training.output_dir), or start again with a longer warm-up; compare with the metrics and videos of that time."
    )

    def __init__(self, name: str, metric: str, *, factor: float = 10.0) -> None:
        self.name = name
        self.watches = (metric,)
        self.fires_when = f"the last values of {metric} are {factor:g} times those before them"
        self._rise = Rise(factor)

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        rise = self._rise
        rise.add(metrics[self.watches[0]])
        if not rise.has_risen:
            return None
        return f"{self.watches[0]} has risen {rise.ratio:.3g} times, from {rise.earlier_level:.3g} to {rise.level:.3g}"


def rules_of_loss(name: str) -> list[HealthRule]:
    """For a loss, by its logged name."""
    return [Exploding("loss_exploding", name)]


def rules_of_role(role: str, max_grad_norm: float) -> list[HealthRule]:
    """For a trained role; those that see its tensors come from `fvd.health.movement`."""
    rules: list[HealthRule] = [NonFiniteGradient(role), Exploding("gradient_exploding", f"grad_norm/{role}")]
    return [*rules, AlwaysClipped(role, max_grad_norm)] if max_grad_norm > 0 else rules
