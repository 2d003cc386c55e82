"""`fvd check FILE`: everything that can be said of a run file without loading torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fvd.cli.run import add_run_file_arguments
from fvd.errors import FvdError, Problem

if TYPE_CHECKING:
    from rich.table import Table

    from fvd.config.meaning import Explanation, Knob

WIDE = 140
"""Columns of a terminal from which on a meaning stands beside its value, and not below."""
NARROW = 60
"""Columns below which key, value, source and meaning have a line each: beside a key there is no room for a sentence."""
LONG = 36
"""Characters: longer values do not widen their column."""


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_file_arguments(parser)
    parser.add_argument(
        "--explain", action="store_true", help="print every key of the run: its value, where that comes from, what it means"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable findings")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from fvd.config.load import load_run_file

    explanation = None
    try:
        loaded = load_run_file(args.run_file, args.overrides, options=args.plugin_options)
        args.plugins = loaded.plugins
        problems = loaded.problems
        if args.explain and loaded.config is not None:
            from fvd.config.meaning import explain_run

            explanation = explain_run(loaded)
    except FvdError as error:
        problems = [Problem(message=error.message, cure=error.cure, file=str(args.run_file))]
    ok = not any(problem.severity == "error" for problem in problems)
    if args.json:
        explained = {"explanation": explanation.as_dict()} if explanation else {}
        found = {"ok": ok, "file": str(args.run_file), "problems": [p.as_dict() for p in problems]}
        print(json.dumps(found | explained, indent=2))
    else:
        if explanation:
            _print_explanation(explanation)
        _print(problems, str(args.run_file), ok)
    return 0 if ok else 1


def _print(problems: list[Problem], file: str, ok: bool) -> None:
    for problem in problems:
        print(problem)
    counts = Counter(problem.severity for problem in problems)
    listed = ", ".join(
        f"{counts[kind]} {kind}{'s' * (counts[kind] > 1)}" for kind in ("error", "warning", "note") if counts[kind]
    )
    print(f"{file}: {'ok' if ok else 'not ok'}{f' ({listed})' if listed else ''}")


def _print_explanation(explanation: Explanation) -> None:
    if sys.stdout.isatty():
        _print_for_terminal(explanation)
    else:
        print("\n".join(plain_lines(explanation)))
    print()


def plain_lines(explanation: Explanation) -> Iterator[str]:
    """For pipes and `grep`: a line a key, with the whole key; what is longer than its column pushes the rest aside."""
    for label, text in explanation.headlines.items():
        yield f"{label}: {text}"
    for knobs in filter(None, explanation.sections.values()):
        yield ""
        widths = _widths(knobs)
        for knob in knobs:
            cells = (cell.ljust(width) for cell, width in zip(_cells(knob), widths, strict=True))
            yield "  ".join((*cells, knob.meaning)).rstrip()


def _cells(knob: Knob) -> tuple[str, str, str]:
    return knob.key, knob.value_text, knob.source


def _widths(knobs: Sequence[Knob]) -> tuple[int, int, int]:
    """Of the columns of `_cells`; the few very long values do not count."""
    keys, values, sources = ([len(cell) for cell in column] for column in zip(*map(_cells, knobs), strict=True))
    return max(keys), max((width for width in values if width <= LONG), default=0), max(sources)


def _print_for_terminal(explanation: Explanation) -> None:
    """Under each section's name its keys, in columns; where the terminal is narrow, with source and meaning below the value,
    and where it is very narrow with a line each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_column(no_wrap=True)
    head.add_column(overflow="fold")
    for label, text in explanation.headlines.items():
        head.add_row(Text(label, style="bold"), Text(text))
    console.print(head)
    short = {
        section: [replace(knob, key=knob.key.removeprefix(f"{section}.")) for knob in knobs]
        for section, knobs in explanation.sections.items()
    }
    widths = _widths([knob for knobs in short.values() for knob in knobs])
    for section, knobs in short.items():
        console.print(Text(f"\n{section}", style="bold"))
        console.print(_drawn(knobs, widths, console.width) if knobs else Text("it has no keys", style="dim"))


def _drawn(knobs: Sequence[Knob], widths: tuple[int, int, int], columns: int) -> Table:
    """The keys of a section for a terminal of so many columns."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from fvd.config.meaning import DEFAULT

    table = Table.grid(padding=(0, 2 if columns >= NARROW else 0, 0, 0))
    fixed = widths if columns >= WIDE else widths[:1] if columns >= NARROW else ()
    for width in (*fixed, None):
        table.add_column(width=width, overflow="fold")
    for knob in knobs:
        key, value, meaning = Text(knob.key, style="cyan"), Text(knob.value_text), Text(knob.meaning)
        source = Text(knob.source, style="dim" if knob.source == DEFAULT else "")
        if columns >= WIDE:
            table.add_row(key, value, source, meaning)
        elif columns >= NARROW:
            said = value + Text("  (") + source + Text(")")
            table.add_row(key, Text("\n").join([said, *([meaning] if meaning else [])]))
        else:
            table.add_row(key)
            for text in filter(None, (value, source, meaning)):
                table.add_row(Padding(text, (0, 0, 0, 2)))
    return table
