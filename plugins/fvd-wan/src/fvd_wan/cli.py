"""``fvd wan …``: what the Wan plugin adds to the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="wan_command", required=True, metavar="COMMAND")
    tiny = commands.add_parser(
        "tiny",
        help="write a tiny random Wan 2.1 text-to-video model",
        description="Write a random Wan 2.1 text-to-video pipeline in diffusers format, small enough for a CPU.",
    )
    tiny.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    tiny.add_argument("--seed", type=int, default=0, help="equal seeds give equal models (default 0)")
    tiny.add_argument("--overwrite", action="store_true", help="replace a model that is already there")
    tiny.set_defaults(execute=make_tiny)


def make_tiny(args: argparse.Namespace) -> int:
    from fvd_wan.tiny import make_tiny_wan

    make_tiny_wan(args.out, seed=args.seed, overwrite=args.overwrite)
    print(f"wrote a tiny Wan 2.1 pipeline to {args.out}")
    return 0
