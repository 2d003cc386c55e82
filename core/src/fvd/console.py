"""What commands print: a progress bar and tables on a terminal, plain lines in a pipe. Light: rich is loaded on use."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

RATE_WINDOW = 64
"""The rate and the ETA follow the last so many advances, so that they settle after a slow start."""

FieldValue = float | str


class Progress(ABC):
    """Counts towards ``total``; fields are shown with the newest value of each."""

    def __init__(self, description: str, total: int, initial: int, clock: Callable[[], float]) -> None:
        self.description = description
        self.total = total
        self.done = initial
        self.fields: dict[str, str] = {}
        self._clock = clock
        self._times: deque[tuple[float, int]] = deque([(clock(), initial)], maxlen=RATE_WINDOW)

    def advance(self, count: int = 1, **fields: FieldValue) -> None:
        """``count`` more are done. ``loss=0.1234567`` shows as ``loss=0.1235``."""
        self.done += count
        self.fields.update({name: value if isinstance(value, str) else f"{value:.4g}" for name, value in fields.items()})
        self._times.append((self._clock(), self.done))
        self._show()

    def seconds_each(self) -> float | None:
        """Recent seconds for one, or None before anything is done."""
        (first_time, first_done), (last_time, last_done) = self._times[0], self._times[-1]
        return (last_time - first_time) / (last_done - first_done) if last_done > first_done else None

    def status(self) -> str:
        """``loss=0.12  3.1 s/it  eta 3:20:11``, as far as known."""
        parts = [f"{name}={value}" for name, value in self.fields.items()]
        seconds = self.seconds_each()
        if seconds is not None:
            parts.append(f"{seconds:.3g} s/it")
            if self.done < self.total:
                parts.append(f"eta {timedelta(seconds=round(seconds * (self.total - self.done)))}")
        return "  ".join(parts)

    @abstractmethod
    def _show(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class PlainProgress(Progress):
    """Lines: the first, the last, and at most one every ``every_seconds`` in between."""

    def __init__(
        self, description: str, total: int, initial: int, *, every_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(description, total, initial, clock)
        self._every_seconds = every_seconds
        self._next_line = clock()
        self._printed = initial

    def _show(self) -> None:
        if self.done >= self.total or self._clock() >= self._next_line:
            self._print()

    def close(self) -> None:
        if self.done != self._printed:
            self._print()

    def _print(self) -> None:
        print(f"{self.description} {self.done}/{self.total}  {self.status()}".rstrip(), flush=True)
        self._printed = self.done
        self._next_line = self._clock() + self._every_seconds


class RichProgress(Progress):
    """A bar that redraws itself."""

    def __init__(self, description: str, total: int, initial: int) -> None:
        super().__init__(description, total, initial, time.monotonic)
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        plain = TextColumn("{task.description}", markup=False)
        status = TextColumn("{task.fields[status]}", markup=False)
        self._bar = Bar(plain, BarColumn(), MofNCompleteColumn(), status)
        self._task = self._bar.add_task(description, total=total, completed=initial, status="")
        self._bar.start()

    def _show(self) -> None:
        self._bar.update(self._task, completed=self.done, status=self.status())

    def close(self) -> None:
        self._bar.stop()


@contextmanager
def progress(description: str, total: int, *, initial: int = 0, every_seconds: float = 10.0) -> Iterator[Progress]:
    """``with progress("training", 4000, initial=step) as bar: bar.advance(loss=0.12)``.

    On a terminal a bar; in a pipe ``training 120/4000  loss=0.12  3.1 s/it  eta 3:20:11`` at most every ``every_seconds``.
    What is printed meanwhile appears above the bar.
    """
    bar: Progress
    if sys.stdout.isatty():
        bar = RichProgress(description, total, initial)
    else:
        bar = PlainProgress(description, total, initial, every_seconds=every_seconds)
    try:
        yield bar
    finally:
        bar.close()


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: framed on a terminal, aligned columns in a pipe."""
    if sys.stdout.isatty():
        _print_rich_table(headers, rows)
    else:
        print("\n".join(aligned(headers, rows)), flush=True)


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of left-aligned columns, two spaces apart."""
    lines = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _print_rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*headers)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))  # Text: a caption may hold what rich takes for markup
    Console().print(drawn)
