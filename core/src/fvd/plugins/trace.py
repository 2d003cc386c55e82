"""FVD_TRACE_PLUGINS=1: what each plugin costs, on stderr as it happens, and a table when the process ends."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

VARIABLE = "FVD_TRACE_PLUGINS"
_NOTHING: AbstractContextManager[None] = nullcontext()


def measure(plugin: str, what: str) -> AbstractContextManager[None]:
    """Time what is done inside on account of ``plugin``; nothing where tracing is off. what: ``import`` or a hook."""
    return _TRACE.measure(plugin, what) if switched_on(VARIABLE) else _NOTHING


def switched_on(variable: str) -> bool:
    """Whether an environment variable is set to anything but nothing and 0."""
    return os.environ.get(variable, "") not in ("", "0")


class Trace:
    """Calls and seconds by (plugin, what)."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, str], tuple[int, float]] = {}

    @contextmanager
    def measure(self, plugin: str, what: str) -> Iterator[None]:
        if not self._totals:
            atexit.register(self.print_table)
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            calls, total = self._totals.get((plugin, what), (0, 0.0))
            self._totals[plugin, what] = (calls + 1, total + seconds)
            print(f"fvd trace: {plugin}  {what}  {seconds * 1e3:.3f} ms", file=sys.stderr)

    def table(self) -> list[str]:
        """The dearest first."""
        from fvd.console import aligned

        dearest = sorted(self._totals.items(), key=lambda entry: -entry[1][1])
        rows = [[plugin, what, str(calls), f"{total * 1e3:.3f}"] for (plugin, what), (calls, total) in dearest]
        return aligned(["PLUGIN", "HOOK", "CALLS", "MS"], rows)

    def print_table(self) -> None:
        print("fvd trace: time by plugin and hook", *self.table(), sep="\n", file=sys.stderr)


_TRACE = Trace()
