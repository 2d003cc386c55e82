"""`fvd plugins list`: every installed plugin, its state and what it provides."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

import fvd
from fvd.cli.plugins.output import align, pages_line, print_json, provided, record_as_dict, shared_findings
from fvd.plugins.registry import KINDS

if TYPE_CHECKING:
    from fvd.cli.main import Arguments
    from fvd.plugins import PluginRecord, Plugins


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for tools")
    parser.add_argument("--kind", choices=KINDS, help="only plugins that provide this kind, and only that of them")
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    plugins, kind = args.plugins, args.kind
    records = [record for record in plugins.records if kind is None or provided(record, kind)]
    if args.json:
        print_json(
            {
                "core": {"version": fvd.__version__},
                "plugins": [record_as_dict(record, kind) for record in records],
                "remarks": [finding.as_dict() for finding in shared_findings(plugins)],
            }
        )
    else:
        _print_listing(plugins, records, kind)
    return 0


def _print_listing(plugins: Plugins, records: list[PluginRecord], kind: str | None) -> None:
    usable = sum(record.usable for record in plugins.records)
    print(f"fvd-core {fvd.__version__}  ·  {usable} of {len(plugins.records)} plugins usable")
    rows = [[r.name, r.distribution, r.version, r.state, _outcome(r, kind)] for r in records]
    lines = align([["PLUGIN", "DISTRIBUTION", "VERSION", "STATE", "PROVIDES"], *rows])
    print(lines[0])
    for record, line in zip(records, lines[1:], strict=True):
        print(line)
        for more in _more(record):
            print(f"      {more}")
    findings = list(shared_findings(plugins))
    for finding in findings:
        for line in finding.lines("!"):
            print(line)
    for line in pages_line([*(record.code for record in records), *(finding.code for finding in findings)]):
        print(line)


def _outcome(record: PluginRecord, kind: str | None) -> str:
    """What it provides; of one that cannot be used, why not."""
    if not record.usable:
        return f"{record.code} {record.reason}"
    return ", ".join(provided(record, kind)) or "nothing"


def _more(record: PluginRecord) -> Iterator[str]:
    if record.usable and record.code:
        yield f"{record.code} {record.reason}"
    if record.cure:
        yield f"cure: {record.cure}"
