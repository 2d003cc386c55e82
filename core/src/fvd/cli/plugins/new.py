"""`fvd plugins new fvd-ltx --kind family`: a complete plugin, to be replaced piece by piece."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fvd.scaffold import LIBRARIES

if TYPE_CHECKING:
    from fvd.cli.main import Arguments
    from fvd.scaffold import NewPlugin


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("distribution", metavar="NAME", help="of the distribution, such as fvd-ltx")
    parser.add_argument("--kind", required=True, choices=list(LIBRARIES), help="what it provides")
    parser.add_argument("--into", type=Path, default=Path(), metavar="FOLDER", help="where its folder goes (default: here)")
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    from fvd.scaffold import NewPlugin, write_plugin

    new = NewPlugin(args.distribution, args.kind)
    new.check(args.load_all_plugins())
    files = write_plugin(new, args.into)
    folder = args.into / new.distribution
    print(f"{folder}: the {new.kind} {new.name}")
    for path in files:
        print(f"  {path}")
    print("next:")
    print(f"  python -m pip install -e {shlex.quote(str(folder))}")
    print(f"  fvd plugins check {new.name}")
    print(f"  fvd plugins {_then(new)}")
    return 0


def _then(new: NewPlugin) -> str:
    return f"example {new.name} > run.yaml" if new.kind in ("family", "method") else f"show {new.name}"
