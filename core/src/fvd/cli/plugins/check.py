"""`fvd plugins check NAME`: the conformance kit on one plugin or component."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import fvd
from fvd.errors import FvdError

if TYPE_CHECKING:
    from fvd.cli.main import Arguments
    from fvd.testing.conformance import CheckResult, Report

MARKS = {"passed": "✓", "failed": "✗", "unexpected pass": "✗", "expected": "!", "skipped": "-"}
LINES_OF_OUTPUT = 20


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a plugin, or one component of it (wan, acme-wan:wan)")
    parser.add_argument("-k", metavar="ID", action="append", default=[], dest="only", help="make only this check (repeatable)")
    parser.add_argument("--json", action="store_true", help="for tools")
    parser.add_argument("--certificate", metavar="FILE", type=Path, help="write what was found as JSON, with all versions")
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    from fvd.testing.conformance import load_for_check, run

    only = [check_id for given in args.only for check_id in given.replace(",", " ").upper().split()]
    if only and args.certificate:
        raise FvdError("a certificate is of all checks", cure="Leave out -k, or --certificate.")
    report = run(load_for_check(args.name, args.plugin_options), args.name, only=only)
    document = json.dumps(report.as_dict(), indent=2, ensure_ascii=False)
    if args.json:
        print(document)
    else:
        for line in _lines(report):
            print(line)
    if args.certificate:
        from fvd.files import write_text_aside

        write_text_aside(args.certificate, document + "\n")
        if not args.json:
            print(f"certificate: {args.certificate}")
    return 0 if report.ok else 1


def _lines(report: Report) -> Iterator[str]:
    from fvd.testing.conformance import KIT_VERSION

    yield f"{report.plugin} ({report.distribution} {report.version})   fvd-core {fvd.__version__}, kit {KIT_VERSION}"
    for component, of_component in groupby(report.results, key=lambda result: result.component):
        yield f"  {component.replace(':', ' ')}"
        for group, results in groupby(of_component, key=lambda result: result.group):
            yield f"    {group}"
            for result in results:
                yield from _result_lines(result)
    yield report.summary or "no check applies"


def _result_lines(result: CheckResult) -> Iterator[str]:
    yield f"      {MARKS[result.status]} {result.id:<5}{result.title}"
    for line in result.message.splitlines():
        yield from textwrap.wrap(line, 116, initial_indent=" " * 13, subsequent_indent=" " * 13)
    if not result.ok:
        yield from (f"             | {line}" for line in result.output.splitlines()[-LINES_OF_OUTPUT:])
