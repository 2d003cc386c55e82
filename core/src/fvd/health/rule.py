"""What an alarm is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal


class HealthRule(ABC):
    """One alarm. An object belongs to one run and keeps its windows in itself.

    name: ``collapse``; rules of one name share the metric ``health/<name>``, 1 while one of them is on. watches: metrics by
    their logged names (``train/loss``, ``grad_norm/student``). asked_with: `observe` is called at the steps that have
    ``"all"`` of them, or at those that have ``"any"``: for a rule that compares metrics of different roles, which may never
    move in the same step; such a rule keeps what it needs of the steps before. fires_when: the condition, for people.
    remedy: what to do, a sentence or two for people.

    ends_run_after: so many findings in a row end the run as a failure. So does, at the run's last step, a finding that is the
    last one heard of the rule, where at least half of its last ten observations (or of all, if there are fewer) are findings.
    Checkpoints from the first of these findings on are kept as ``failed-…``, which no run continues from by itself.
    """

    name: str
    watches: tuple[str, ...]
    asked_with: Literal["all", "any"] = "all"
    fires_when: str
    remedy: str
    ends_run_after: int | None = None

    @abstractmethod
    def observe(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong, with its figures, in one sentence without a full stop; None: nothing.

        metrics: all metrics of the step. Called in the order of the steps; in a run that continues, first with the logged
        steps before (see `fvd.health.past`). Values may be NaN or infinite: `RecentMedian` and `Rise` pass over these, core
        has an alarm for them.
        """
