"""Pages of documentation that are run: their files are written, their commands typed, their transcripts compared.

A page is Markdown. A fenced block after a line that begins with `` `path/of/a/file`: `` is that file; a ``console`` block is
what a terminal shows, each command behind ``$ ``. Everything happens in the order of the page, in one folder and (torch is
imported once) one Python process. In a transcript, a line of ``...`` stands for any lines, and figures that differ from run to
run (seconds, milliseconds, hashes) are not compared. ``FVD_WRITE_DOCS=1`` writes what is really shown into the page.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WRITE = os.environ.get("FVD_WRITE_DOCS") == "1"
WIDTH = 128

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_FILE_LINE = re.compile(r"^`([\w./-]+\.\w+)`[^\n]*:\n\n\Z", flags=re.MULTILINE)
_PROGRESS = re.compile(r"\w+ \d+/\d+ .*s/it")
_VARIABLE = [
    (re.compile(r"\b\d+(\.\d+)? ?(ms|s|min|MiB|kB|MB|GB)\b"), r"N \2"),
    (re.compile(r"\b\d+:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "HASH"),
    (re.compile(r"\b\d+\.\d+(e-?\d+)?\b"), "X"),
    (re.compile(r"  +"), "  "),
]


@dataclass(frozen=True)
class File:
    path: str
    text: str


@dataclass(frozen=True)
class Typed:
    """One command with what the page shows for it; ``start`` and ``end``: where that text lies in the page."""

    command: str
    shown: str
    start: int
    end: int


def read_page(text: str) -> list[File | Typed]:
    """What the page does, in order."""
    steps: list[File | Typed] = []
    for block in _FENCE.finditer(text):
        if block.group(1) == "console":
            steps += _commands(text, block.start(2), block.end(2))
        elif named := _FILE_LINE.search(text[: block.start()]):
            steps.append(File(named.group(1), block.group(2)))
    return steps


def _commands(text: str, start: int, end: int) -> Iterator[Typed]:
    """Each ``$ `` line of a block with the lines up to the next; a command may go on behind a backslash."""
    positions = [start + found.start() for found in re.finditer(r"^\$ ", text[start:end], flags=re.MULTILINE)]
    for position, following in zip(positions, [*positions[1:], end], strict=True):
        line_end = text.index("\n", position) + 1
        while text[line_end - 2] == "\\":
            line_end = text.index("\n", line_end) + 1
        command = text[position + 2 : line_end - 1].replace("\\\n", " ")
        yield Typed(re.sub(r"\s+#\s.*", "", command), text[line_end:following], line_end, following)


def alike(shown: str, real: str) -> bool:
    """Whether a transcript is what really happened, figures, lines of progress and ``...`` aside."""
    pattern = [r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in _steady_lines(shown)]
    return re.fullmatch("".join(pattern), "".join(f"{line}\n" for line in _steady_lines(real))) is not None


def _steady_lines(text: str) -> Iterator[str]:
    """How often progress is reported depends on the machine."""
    return (_steady(line) for line in text.splitlines() if not _PROGRESS.match(line))


def _steady(line: str) -> str:
    for variable, name in _VARIABLE:
        line = variable.sub(name, line)
    return line.rstrip()


def run_page(page: Path, folder: Path, *, environment: Mapping[str, str] | None = None) -> list[tuple[Typed, int, str]]:
    """Do what the page says in ``folder``; returns every command with its exit status and its output."""
    steps = read_page(page.read_text(encoding="utf-8"))
    wanted = [{"file": s.path, "text": s.text} if isinstance(s, File) else {"command": s.command} for s in steps]
    path = os.pathsep.join([str(Path(__file__).parent), *(entry for entry in sys.path if entry)])
    variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": str(WIDTH)}
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("page_driver.py")), json.dumps(wanted), str(folder / ".results.json")],
        cwd=folder,
        env=dict(os.environ) | variables | dict(environment or {}),
        check=True,
        timeout=600,
    )
    results = json.loads((folder / ".results.json").read_text(encoding="utf-8"))
    commands = [step for step in steps if isinstance(step, Typed)]
    return [(step, status, output) for step, (status, output) in zip(commands, results, strict=True)]


def write_transcripts(page: Path, outcomes: Sequence[tuple[Typed, int, str]]) -> None:
    """Put the real outputs into the page, but where what it shows is alike."""
    text = page.read_text(encoding="utf-8")
    for typed, _, output in sorted(outcomes, key=lambda outcome: -outcome[0].start):
        if not alike(typed.shown, output):
            text = text[: typed.start] + output + text[typed.end :]
    page.write_text(text, encoding="utf-8")
