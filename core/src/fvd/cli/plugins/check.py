"""`fvd plugins check NAME`: the conformance kit on one plugin or component."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fvd
from fvd.errors import FvdError

if TYPE_CHECKING:
    from fvd.cli.main import Arguments
    from fvd.testing.conformance import CheckResult

MARKS = {"passed": "✓", "failed": "✗", "unexpected pass": "✗", "expected": "!", "skipped": "-"}
LINES_OF_OUTPUT = 20


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a plugin, or one component of it (wan, acme-wan:wan)")
    parser.add_argument("-k", metavar="ID", action="append", default=[], dest="only", help="make only this check (repeatable)")
    parser.add_argument("--json", action="store_true", help="for tools")
    parser.add_argument("--certificate", metavar="FILE", type=Path, help="write what was found as JSON, with all versions")
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    from fvd.testing.conformance import KIT_VERSION, load_for_check, run
    from fvd.testing.conformance.runner import find_subjects

    only = [check_id for given in args.only for check_id in given.replace(",", " ").upper().split()]
    if only and args.certificate:
        raise FvdError("a certificate is of all checks", cure="Leave out -k, or --certificate.")
    plugins = load_for_check(args.name, args.plugin_options)
    if args.json:
        report = run(plugins, args.name, only=only)
    else:
        record = find_subjects(plugins, args.name)[0][0]
        printer = Printer(f"{record}   fvd-core {fvd.__version__}, kit {KIT_VERSION}")
        report = run(plugins, args.name, only=only, on_result=printer.print)
        print(report.summary or "no check applies")
    document = json.dumps(report.as_dict(), indent=2, ensure_ascii=False)
    if args.json:
        print(document)
    if args.certificate:
        from fvd.files import write_text_aside

        write_text_aside(args.certificate, document + "\n")
        if not args.json:
            print(f"certificate: {args.certificate}")
    return 0 if report.ok else 1


class Printer:
    """Prints each result as it comes, under the component and the group that it belongs to, and a title before the first."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._component = self._group = ""

    def print(self, result: CheckResult) -> None:
        if not self._component:
            print(self._title)
        if result.component != self._component:
            self._component, self._group = result.component, ""
            print(f"  {result.component.replace(':', ' ')}")
        if result.group != self._group:
            self._group = result.group
            print(f"    {result.group}")
        for line in _result_lines(result):
            print(line, flush=True)


def _result_lines(result: CheckResult) -> Iterator[str]:
    yield f"      {MARKS[result.status]} {result.id:<5}{result.title}"
    for line in result.message.splitlines():
        yield from textwrap.wrap(line, 116, initial_indent=" " * 13, subsequent_indent=" " * 13)
    if not result.ok:
        yield from (f"             | {line}" for line in result.output.splitlines()[-LINES_OF_OUTPUT:])
