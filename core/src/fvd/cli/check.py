"""`fvd check FILE`: everything that can be said of a run file without loading torch."""

from __future__ import annotations

import argparse
import json
from collections import Counter

from fvd.cli.run import add_run_file_arguments
from fvd.errors import FvdError, Problem


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_file_arguments(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable findings")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from fvd.config.load import load_run_file

    try:
        loaded = load_run_file(args.run_file, args.overrides, options=args.plugin_options)
        args.plugins = loaded.plugins
        problems = loaded.problems
    except FvdError as error:
        problems = [Problem(message=error.message, cure=error.cure, file=str(args.run_file))]
    ok = not any(problem.severity == "error" for problem in problems)
    if args.json:
        print(json.dumps({"ok": ok, "file": str(args.run_file), "problems": [p.as_dict() for p in problems]}, indent=2))
    else:
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
