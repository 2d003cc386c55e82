"""What a run that continues had logged before: the rules see it again, so that they go on where they were.

Not every row is read, or a long run would take minutes to start: the first `FIRST` rows, in which rules take what the
run began with, and the last `LAST`, many times the length of any window. That is a second of work at most.
"""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FIRST, LAST = 1000, 2000
OF_A_STEP = "data/epoch"
"""A metric that every step has, and the row of a validation has not."""


@dataclass(frozen=True)
class PastStep:
    """One logged step. follows: the row before it is that of the step before, as it is where every step is logged."""

    step: int
    metrics: dict[str, float]
    follows: bool


def past_steps(metrics_file: Path, until: int) -> list[PastStep]:
    """The logged steps up to ``until``, in order. Rows that cannot be read (a torn last line) are left out."""
    if not metrics_file.exists():
        return []
    past: list[PastStep] = []
    with metrics_file.open(encoding="utf-8", errors="replace") as file:
        for row in _rows(_first_and_last(file)):
            step = int(row.pop("step"))
            if step <= until and OF_A_STEP in row:
                past.append(PastStep(step, row, follows=bool(past) and past[-1].step == step - 1))
    return past


def _first_and_last(lines: Iterable[str]) -> Iterator[str]:
    last: deque[str] = deque(maxlen=LAST)
    for number, line in enumerate(lines):
        if number < FIRST:
            yield line
        else:
            last.append(line)
    yield from last


def _rows(lines: Iterable[str]) -> Iterator[dict[str, float]]:
    for line in lines:
        try:
            # Interned: the names of a thousand rows are a few dozen. float: non-finite numbers are logged as strings.
            row = {sys.intern(name): float(value) for name, value in json.loads(line).items()}
        except (ValueError, TypeError, AttributeError):
            continue
        if math.isfinite(row.get("step", math.nan)):
            yield row
