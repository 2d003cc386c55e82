"""Figures of a noisy series. Medians: losses at random timesteps have outliers that mean nothing."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque


class RecentMedian:
    """The median of the last ``window`` finite values."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._values: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            return
        if self.full:
            del self._sorted[bisect_left(self._sorted, self._values.popleft())]
        self._values.append(value)
        insort(self._sorted, value)

    @property
    def count(self) -> int:
        return len(self._values)

    @property
    def full(self) -> bool:
        return self.count == self.window

    @property
    def value(self) -> float:
        """NaN while there is nothing."""
        if not self._sorted:
            return math.nan
        low, high = (len(self._sorted) - 1) // 2, len(self._sorted) // 2
        return (self._sorted[low] + self._sorted[high]) / 2


class LowestMedian:
    """The lowest median of any ``window`` finite values in a row: the best level that a loss has had."""

    def __init__(self, window: int) -> None:
        self.median = RecentMedian(window)
        self.value = math.inf
        """Infinite until there are as many values."""

    def add(self, value: float) -> None:
        self.median.add(value)
        if self.median.full:
            self.value = min(self.value, self.median.value)


class Rise:
    """How far a series of positive numbers stands above what it was a while ago.

    The median of the last ``recent`` values over that of the ``reference`` values before them, of which half must be there.
    While it has risen by ``factor`` or more nothing is added to the reference, so that a series that stays high does not
    become its own measure.

    Noise: where values have a standard deviation of half a decade, as losses at random timesteps may have, the ratio of
    these medians has one of a sixth of a decade. Growth: what begins at 0 and grows as the square of the time (the distance
    of two networks that begin equal) never rises by more than 6. A factor of 10 is out of reach for both.
    """

    def __init__(self, factor: float, *, recent: int = 20, reference: int = 100) -> None:
        self.factor = factor
        self._window = recent
        self._latest: deque[float] = deque()
        self._recent, self._reference = RecentMedian(recent), RecentMedian(reference)

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            return
        self._recent.add(value)
        self._latest.append(value)
        if len(self._latest) > self._window:
            past = self._latest.popleft()
            if not self.has_risen:
                self._reference.add(past)

    @property
    def level(self) -> float:
        return self._recent.value

    @property
    def earlier_level(self) -> float:
        return self._reference.value

    @property
    def ratio(self) -> float:
        """Level over earlier level; 1 until there is one, and where that is not positive: a ratio would mean nothing."""
        if self._reference.count < self._reference.window / 2 or self.earlier_level <= 0:
            return 1.0
        return self.level / self.earlier_level

    @property
    def has_risen(self) -> bool:
        return self.ratio >= self.factor
