"""`fvd run FILE`: train."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_file_arguments(parser)
    parser.add_argument(
        "--resume",
        metavar="auto|never|PATH",
        help="auto (default): continue what is in training.output_dir; never: refuse if there is something; "
        "PATH: continue from this checkpoint folder",
    )
    parser.set_defaults(execute=execute)


def add_run_file_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_file", metavar="FILE", type=Path, help="the run file (YAML, schema v2)")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="set one value, e.g. --set training.max_train_steps=20 (repeatable)",
    )


def execute(args: argparse.Namespace) -> int:
    from fvd.config.load import load_run_file

    loaded = load_run_file(args.run_file, args.overrides, disable=args.disabled_plugins)
    for problem in loaded.problems:
        if problem.severity != "error":
            print(problem, file=sys.stderr)
    args.plugins = loaded.plugins
    config = loaded.require()

    from fvd.launch import launch

    outcome = launch(loaded, resume=args.resume or config.training.resume_from_checkpoint or "auto")
    return 128 + outcome.signal_number if outcome.signal_number else 0
