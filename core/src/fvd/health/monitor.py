"""Asks the rules at each step, says what they find once, and keeps count."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fvd.errors import FvdError
from fvd.health.rule import HealthRule

logger = logging.getLogger("fvd.health")

REPEAT_EVERY = 1000
"""Steps after which an alarm that stays on is logged again."""
CLEAR_AFTER = 50
"""Observations in a row without a finding that end an alarm: one that comes and goes is one alarm."""


@dataclass
class _Watched:
    """A rule, and what it has found so far."""

    rule: HealthRule
    is_on: bool = False
    logged_at: int = 0
    findings: int = 0
    observations: int = 0
    found_in_a_row: int = 0
    silent_in_a_row: int = 0
    last_finding: str = ""

    def add(self, step: int, finding: str | None) -> None:
        self.observations += 1
        self.found_in_a_row = self.found_in_a_row + 1 if finding else 0
        self.silent_in_a_row = 0 if finding else self.silent_in_a_row + 1
        if finding:
            self.findings += 1
            self.last_finding = finding
            if not self.is_on or step - self.logged_at >= REPEAT_EVERY:
                logger.warning("[%s] step %d: %s. Remedy: %s", self.rule.name, step, finding, self.rule.remedy)
                self.logged_at = step
            self.is_on = True
        elif self.is_on and self.silent_in_a_row >= CLEAR_AFTER:
            logger.info("[%s] step %d: no longer", self.rule.name, step)
            self.is_on = False

    @property
    def ends_run(self) -> bool:
        return self.rule.ends_run_after is not None and self.found_in_a_row >= self.rule.ends_run_after

    @property
    def never_silent(self) -> bool:
        return self.rule.ends_run_after is not None and self.findings == self.observations > 0


class HealthMonitor:
    """All rules of a run. A warning when one finds something, again only after it has been silent for `CLEAR_AFTER`
    observations, or after `REPEAT_EVERY` steps."""

    def __init__(self, rules: Sequence[HealthRule]) -> None:
        self._watched = [_Watched(rule) for rule in rules]

    def add(self, rule: HealthRule) -> None:
        self._watched.append(_Watched(rule))

    def observe(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Ask every rule whose metrics are there; ``health/<name>`` of each, 1.0 while it is on."""
        for watched in list(self._watched):
            if all(name in metrics for name in watched.rule.watches):
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

    def why_to_end_now(self, step: int) -> FvdError | None:
        """What to raise where a finding that ends a run has come as often in a row as its rule says."""
        for watched in self._watched:
            if watched.ends_run:
                return _failure(watched, f"step {step}", f"{watched.found_in_a_row} times in a row")
        return None

    def why_it_failed(self, step: int) -> FvdError | None:
        """What to raise at the end of a run in which such a finding came at every observation."""
        for watched in self._watched:
            if watched.never_silent:
                return _failure(
                    watched, f"until step {step}", f"each time that it could have been otherwise ({watched.findings})"
                )
        return None


def _failure(watched: _Watched, when: str, how_often: str) -> FvdError:
    return FvdError(f"[{watched.rule.name}] {when}: {watched.last_finding}; {how_often}", cure=watched.rule.remedy)
