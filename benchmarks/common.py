"""What the benchmarks share: running a process and counting what it used, tables, and a description of the machine.

Light: a benchmark's own process stays small, because a child's peak memory counts from that of its parent.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

FOLDER = Path(__file__).parent
RSS_UNITS_PER_MIB = 2**20 if sys.platform == "darwin" else 2**10
"""The unit of ``ru_maxrss``."""


@dataclass(frozen=True)
class Usage:
    """cpu_seconds: user and system, of all its threads; peak_mib: resident memory."""

    cpu_seconds: float
    peak_mib: float


def measure(command: Sequence[str], *, environment: Mapping[str, str] | None = None, folder: Path | None = None) -> Usage:
    """Run a command to its end, in ``folder``, with ``environment`` on top of ours. Exits with its output if it fails.

    One thread each, and bytecode is written, so that only a first run compiles.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            sys.exit(f"{' '.join(command)} failed with {process.returncode}:\n{output.read()}")
    return Usage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / RSS_UNITS_PER_MIB)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table in Markdown, its columns aligned for those who read it as it is."""
    lines = [[str(cell) for cell in line] for line in (headers, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
    print(flush=True)


def verdict(figure: float, target: float, unit: str = "") -> str:
    """``1.02 (at most 1.03)``, or with the word ABOVE."""
    return f"{figure:.3g}{unit} ({'at most' if figure <= target else 'ABOVE'} {target:g}{unit})"


def machine() -> str:
    """One line for a table's caption."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "fvd-core"))
    return (
        f"{os.cpu_count()} cores of {_cpu_name()}, {platform.system()}, Python {platform.python_version()}, {versions}; "
        f"{datetime.now(UTC):%Y-%m-%d}; load {load}"
    )


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
