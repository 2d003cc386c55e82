"""Asks the rules at each step, says what they find once, and keeps count."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fvd.errors import FvdError
from fvd.health.past import PastStep
from fvd.health.rule import HealthRule

logger = logging.getLogger("fvd.health")

REPEAT_EVERY = 1000
"""Steps after which an alarm that stays on is logged again."""
CLEAR_AFTER = 50
"""Observations in a row without a finding that end an alarm: one that comes and goes is one alarm."""
LATEST = 10
"""Observations that decide, at the end of a run, whether a finding was there to stay."""


@dataclass(frozen=True)
class Failure:
    """Why training came to nothing. began: the step of the first of the findings that say so."""

    error: FvdError
    began: int


@dataclass
class _Watched:
    """A rule, and what it has found so far."""

    rule: HealthRule
    is_on: bool = False
    first_found: int | None = None
    logged_at: int = 0
    row: list[int] = field(default_factory=list)
    """First and last step of the findings in a row; empty where the last observation was none."""
    found_in_a_row: int = 0
    silent_in_a_row: int = 0
    latest: deque[tuple[int, bool]] = field(default_factory=lambda: deque(maxlen=LATEST))
    last_finding: str = ""

    def add(self, step: int, finding: str | None, *, aloud: bool = True) -> None:
        self.latest.append((step, finding is not None))
        if finding is None:
            self.row, self.found_in_a_row = [], 0
            self.silent_in_a_row += 1
            if self.is_on and self.silent_in_a_row >= CLEAR_AFTER:
                if aloud:
                    logger.info("[%s] step %d: no longer", self.rule.name, step)
                self.is_on = False
            return
        self.first_found = step if self.first_found is None else self.first_found
        self.row = [self.row[0] if self.row else step, step]
        self.found_in_a_row += 1
        self.silent_in_a_row = 0
        self.last_finding = finding
        if not self.is_on or step - self.logged_at >= REPEAT_EVERY:
            if aloud:
                logger.warning("[%s] step %d: %s. Remedy: %s", self.rule.name, step, finding, self.rule.remedy)
            self.logged_at = step
        self.is_on = True

    def forget_counts(self) -> None:
        """Steps are missing here: what was found in a row before them says nothing of what comes after."""
        self.row, self.found_in_a_row = [], 0
        self.latest.clear()

    def is_asked(self, metrics: Mapping[str, float]) -> bool:
        there = [name in metrics for name in self.rule.watches]
        return all(there) if self.rule.asked_with == "all" else any(there)

    def ends_run_at(self, step: int) -> bool:
        ends_run_after = self.rule.ends_run_after
        return ends_run_after is not None and self.found_in_a_row >= ends_run_after and self.row[-1] == step

    @property
    def is_there_to_stay(self) -> bool:
        found = sum(is_found for _, is_found in self.latest)
        return self.rule.ends_run_after is not None and bool(self.row) and 2 * found >= len(self.latest)

    def failure(self, when: str, how_often: str, began: int) -> Failure:
        message = f"[{self.rule.name}] {when}: {self.last_finding}; {how_often}"
        return Failure(FvdError(message, cure=self.rule.remedy), began)


class HealthMonitor:
    """All rules of a run. A warning when one finds something, again only after it has been silent for `CLEAR_AFTER`
    observations, or after `REPEAT_EVERY` steps.

    past: what a run that continues at ``start_step`` had logged. Rules see it before anything else; it raises no alarm and
    ends no run.
    """

    def __init__(self, rules: Sequence[HealthRule], past: Sequence[PastStep] = (), *, start_step: int = 0) -> None:
        self._watched: list[_Watched] = []
        self._past, self._start_step = past, start_step
        for rule in rules:
            self.add(rule)

    def add(self, rule: HealthRule) -> None:
        watched = _Watched(rule)
        self._watched.append(watched)
        self._show_past(watched)

    def _show_past(self, watched: _Watched) -> None:
        for row in self._past:
            if not row.follows:
                watched.forget_counts()
            if watched.is_asked(row.metrics):
                try:
                    watched.add(row.step, watched.rule.observe(row.metrics), aloud=False)
                except Exception:
                    logger.debug("the health rule %s failed on a logged step", watched.rule.name, exc_info=True)
        if self._past and self._past[-1].step != self._start_step:
            watched.forget_counts()

    def observe(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Ask every rule whose metrics are there; ``health/<name>`` of each, 1.0 while it is on."""
        for watched in list(self._watched):
            if watched.is_asked(metrics):
                self._ask(watched, step, metrics)
        states: dict[str, float] = {}
        for watched in self._watched:
            name = f"health/{watched.rule.name}"
            states[name] = max(states.get(name, 0.0), float(watched.is_on))
        return states

    def _ask(self, watched: _Watched, step: int, metrics: Mapping[str, float]) -> None:
        try:
            finding = watched.rule.observe(metrics)
        except Exception:
            logger.warning("the health rule %s failed and is left out; the run continues", watched.rule.name, exc_info=True)
            self._watched.remove(watched)
            return
        watched.add(step, finding)

    def describe_alarms(self) -> str:
        """Every alarm of the run, for its end: ``clipping at step 20, critic_behind since step 270``; ``since`` where it is
        still on. Empty where there was none."""
        first: dict[str, int] = {}
        still_on: set[str] = set()
        for watched in self._watched:
            name, step = watched.rule.name, watched.first_found
            if step is not None:
                first[name] = min(step, first.get(name, step))
            if watched.is_on:
                still_on.add(name)
        in_order = sorted(first.items(), key=lambda alarm: alarm[1])
        return ", ".join(f"{name} {'since' if name in still_on else 'at'} step {step}" for name, step in in_order)

    @property
    def doubtful_since(self) -> int | None:
        """The first step of the findings in a row that may come to end the run; None where there are none."""
        rows = [watched.row[0] for watched in self._watched if watched.row and watched.rule.ends_run_after is not None]
        return min(rows, default=None)

    def why_to_end_now(self, step: int) -> Failure | None:
        """Where, with this step, a finding that ends a run has come as often in a row as its rule says."""
        for watched in self._watched:
            if watched.ends_run_at(step):
                return watched.failure(f"step {step}", f"{watched.found_in_a_row} times in a row", watched.row[0])
        return None

    def why_it_failed(self, step: int) -> Failure | None:
        """At the end of a run: where such a finding is the last that was heard of its rule, and was there at least half of
        the last times."""
        for watched in self._watched:
            if watched.is_there_to_stay:
                found = [at for at, is_found in watched.latest if is_found]
                how_often = f"{len(found)} of the last {len(watched.latest)} times that it could have been otherwise"
                return watched.failure(f"until step {step}", how_often, min(found[0], watched.row[0]))
        return None
