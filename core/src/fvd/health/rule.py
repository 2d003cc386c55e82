"""What an alarm is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping


class HealthRule(ABC):
    """One alarm. An object belongs to one run and keeps its windows in itself.

    name: ``collapse``; rules of one name share the metric ``health/<name>``, 1 while one of them is on. watches: metrics by
    their logged names (``train/loss``, ``grad_norm/student``); `observe` is called at the steps that have all of them.
    fires_when: the condition, for people. remedy: what to do, a sentence or two for people. ends_run_after: so many
    findings in a row end the run, with a checkpoint and a failure; so does a finding at every observation of a run.
    """

    name: str
    watches: tuple[str, ...]
    fires_when: str
    remedy: str
    ends_run_after: int | None = None

    @abstractmethod
    def observe(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong, with its figures, in one sentence without a full stop; None: nothing.

        metrics: all metrics of the step. Called in the order of the steps. Values may be NaN or infinite: `RecentMedian` and
        `Rise` pass over these, core has an alarm for them.
        """
