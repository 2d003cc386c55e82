"""What commands print: a progress bar and tables on a terminal, plain lines in a pipe. Light: rich is loaded on use.

What a command produces (tables, listings, JSON) goes to stdout; progress, notes and warnings go to stderr.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

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
        self._paused_seconds = 0.0
        self._times: deque[tuple[float, int]] = deque([(clock(), initial)], maxlen=RATE_WINDOW + 1)

    def advance(self, count: int = 1, **fields: FieldValue) -> None:
        """``count`` more are done. ``loss=0.1234567`` shows as ``loss=0.1235``."""
        self.done += count
        self.fields.update({name: value if isinstance(value, str) else f"{value:.4g}" for name, value in fields.items()})
        self._times.append((self._clock() - self._paused_seconds, self.done))
        self._show()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """``with bar.paused(): validate()``: time that the rate and the ETA leave out."""
        started = self._clock()
        try:
            yield
        finally:
            self._paused_seconds += self._clock() - started

    def seconds_each(self) -> float | None:
        """Recent seconds for one, or None before anything is done. A mean: steps of two lengths, as where a role is
        updated every fifth step, have no typical one."""
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
        note(f"{self.description} {self.done}/{self.total}  {self.status()}".rstrip())
        self._printed = self.done
        self._next_line = self._clock() + self._every_seconds


class RichProgress(Progress):
    """A line of a bar that redraws itself."""

    def __init__(self, bar: Bar, description: str, total: int, initial: int) -> None:
        super().__init__(description, total, initial, time.monotonic)
        self._bar = bar
        self._task = bar.add_task(description, total=total, completed=initial, status="")

    def _show(self) -> None:
        self._bar.update(self._task, completed=self.done, status=self.status())

    def close(self) -> None:
        """The line of a finished part goes; the last one stays on the screen when the bar stops."""
        if len(self._bar.tasks) > 1:
            self._bar.remove_task(self._task)


_running_bars: list[Bar] = []
"""A terminal has room for one live display: what begins while one runs becomes a line of it."""


@contextmanager
def _rich_bar() -> Iterator[Bar]:
    """The running bar, or else a new one."""
    if _running_bars:
        yield _running_bars[-1]
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    description = TextColumn("{task.description}", markup=False)
    status = TextColumn("{task.fields[status]}", markup=False)
    # What is printed to a terminal is lifted above the bar; what goes from stdout into a pipe must stay in the pipe.
    bar = Bar(
        description,
        BarColumn(),
        MofNCompleteColumn(),
        status,
        console=Console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),
    )
    _running_bars.append(bar)
    try:
        with bar:
            yield bar
    finally:
        _running_bars.remove(bar)


@contextmanager
def progress(description: str, total: int, *, initial: int = 0, every_seconds: float = 10.0) -> Iterator[Progress]:
    """``with progress("training", 4000, initial=step) as bar: bar.advance(loss=0.12)``, on stderr.

    On a terminal a bar; in a pipe ``training 120/4000  loss=0.12  3.1 s/it  eta 3:20:11`` at most every ``every_seconds``.
    What is printed meanwhile appears above the bar. One inside another is a second line while it lasts.
    """
    bar: Progress
    with ExitStack() as stack:
        if sys.stderr.isatty():
            bar = RichProgress(stack.enter_context(_rich_bar()), description, total, initial)
        else:
            bar = PlainProgress(description, total, initial, every_seconds=every_seconds)
        stack.callback(bar.close)
        yield bar


def note(text: str) -> None:
    """A line for the person who waits, on stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout: framed on a terminal, aligned columns in a pipe."""
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
