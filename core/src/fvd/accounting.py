"""How much network a step costs: what a method expects, and what was counted. Light: a method's config module imports it.

The unit is one micro-batch of the run through one network: half a batch is 0.5, conditional and unconditional samples
in one forward are 2. A step of several micro-batches counts as their average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Passes:
    """Of one role, in a step: forwards through its network, and those of them that are made for a backward pass."""

    forwards: float
    backwards: float


def describe_passes(passes: Mapping[str, Passes]) -> str:
    """``student 2.5 forward, 0.2 backward; teacher 0.4 forward``: backward only where there is any."""
    return "; ".join(
        f"{role} {_rounded(each.forwards)} forward"
        + (f", {_rounded(each.backwards)} backward" if round(each.backwards, 2) else "")
        for role, each in passes.items()
    )


def forward_equivalents(passes: Mapping[str, Passes]) -> float:
    """Of all roles together, a backward counted as two forwards."""
    return sum(each.forwards + 2 * each.backwards for each in passes.values())


def _rounded(count: float) -> str:
    return f"{round(count, 2):g}"


@dataclass
class _Series:
    """Sum, sum of squares and maximum of what one count was, step by step."""

    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    def add(self, value: float) -> None:
        self.total += value
        self.squares += value * value
        self.largest = max(self.largest, value)

    def mean(self, steps: int) -> float:
        return self.total / steps

    def differs(self, expected: float, steps: int, *, deviations: float, cycles: float) -> bool:
        variance = max(0.0, self.squares / steps - self.mean(steps) ** 2)
        chance = deviations * math.sqrt(variance * steps)
        return abs(self.total - expected * steps) > chance + cycles * max(self.largest, expected, 1.0)


@dataclass
class PassHistory:
    """What was counted in the steps of this process so far.

    deviations: rollouts end at random steps, so a sum over n steps spreads by their standard deviation times sqrt(n); four
    of them are exceeded by chance once in 16 000 runs. cycles: a role that moves every k-th step is 0 at most steps, so a
    run of any length may have cut one cycle at either end: two steps' worth. At 100 steps of a 4-step rollout that is about
    half a forward a step, at 10 000 a twentieth. min_steps: below it nothing is said.
    """

    deviations: float = 4.0
    cycles: float = 2.0
    min_steps: int = 20
    steps: int = 0
    _series: dict[tuple[str, str], _Series] = field(default_factory=dict)

    def add(self, counted: Mapping[str, Passes]) -> None:
        """The passes of one step, by role."""
        self.steps += 1
        for role, passes in counted.items():
            self._series.setdefault((role, "forwards"), _Series()).add(passes.forwards)
            self._series.setdefault((role, "backwards"), _Series()).add(passes.backwards)

    def mean(self) -> dict[str, Passes]:
        """A step, on average, by role."""
        roles = dict.fromkeys(role for role, _ in self._series)
        return {
            role: Passes(*(self._series[role, kind].mean(self.steps) for kind in ("forwards", "backwards"))) for role in roles
        }

    def unexpected(self, expected: Mapping[str, Passes]) -> list[str]:
        """``student forwards`` and the like: what differs from ``expected`` by more than chance explains."""
        if self.steps < self.min_steps:
            return []
        wanted = {(role, kind): count for role, each in expected.items() for kind, count in vars(each).items()}
        return [
            f"{role} {kind}"
            for (role, kind), count in wanted.items()
            if self._series.get((role, kind), _Series()).differs(
                count, self.steps, deviations=self.deviations, cycles=self.cycles
            )
        ]
