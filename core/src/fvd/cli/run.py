"""`fvd run FILE`: train."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fvd.config.load import LoadedRun
    from fvd.plugins.lock import Lock

OF_THE_RUN = Path("training.output_dir")
"""``--locked`` without a path: the lock of ``training.output_dir``."""


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_file_arguments(parser)
    parser.add_argument(
        "--resume",
        metavar="auto|never|PATH",
        help="auto (default): continue what is in training.output_dir; never: refuse if there is something; "
        "PATH: continue from this checkpoint folder; in a new training.output_dir, with the changes of the run file",
    )
    parser.add_argument(
        "--locked",
        metavar="PATH",
        nargs="?",
        type=_lock_path,
        const=OF_THE_RUN,
        help="refuse to run where plugins, versions or the run file are not as a lock file says: "
        "that of PATH (run.lock.json, or a run's or checkpoint's folder), by default of training.output_dir",
    )
    parser.set_defaults(execute=execute)


def _lock_path(text: str) -> Path:
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        raise argparse.ArgumentTypeError(f"{text} is a run file; name it before --locked")
    return path


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

    loaded = load_run_file(args.run_file, args.overrides, options=args.plugin_options)
    for problem in loaded.problems:
        if problem.severity != "error":
            print(problem, file=sys.stderr)
    args.plugins = loaded.plugins
    agree_with_other_ranks(loaded, args.locked)
    config = loaded.require()
    if args.locked is not None:
        check_lock(loaded, args.locked)

    from fvd.launch import launch

    outcome = launch(loaded, resume=args.resume or config.training.resume_from_checkpoint or "auto")
    return 128 + outcome.signal_number if outcome.signal_number else 0


def check_lock(loaded: LoadedRun, path: Path) -> None:
    """Raise PluginError (P12) where plugins or the run file are not what the lock at ``path`` says. Without torch."""
    from fvd.plugins.drift import refuse_drift
    from fvd.plugins.lock import LOCK_FILE, lock_again, read_lock
    from fvd.rundir import with_absolute_paths

    config = loaded.require()
    folder = Path(config.training.output_dir) if path == OF_THE_RUN else path
    file = folder.expanduser() / LOCK_FILE if folder.suffix != ".json" else folder.expanduser()
    locked = read_lock(file)
    refuse_drift(file, locked, lock_again(locked, loaded.plugins, with_absolute_paths(config.as_document())))


def agree_with_other_ranks(loaded: LoadedRun, locked: Path | None) -> None:
    """Raise FvdError on every rank where ranks would run different things; and then, because a run is one process."""
    from fvd.agreement import agree, find_ranks
    from fvd.errors import FvdError

    ranks = find_ranks(os.environ)
    if ranks is None:
        return

    def make_lock() -> Lock:
        config = loaded.require()
        if locked is not None:
            check_lock(loaded, locked)
        from fvd.runtime import lock_run

        return lock_run(config, loaded.plugins)

    agree(ranks, make_lock)
    raise FvdError(
        f"{ranks.size} processes were started, and a run is one process in this version of fvd",
        cure="Start it without torchrun, or with --nproc-per-node 1.",
    )
