"""`fvd plugins …`: what is installed, whether it works, and how to write more of it. One module a subcommand.

A subcommand's module has ``configure(parser)`` and imports anything heavy when it runs; `list`, `show` and `matrix` never
load torch.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

SUBCOMMANDS: dict[str, str] = {
    "list": "every installed plugin, its state and what it provides",
    "show": "one plugin or component in full",
    "matrix": "which methods run on which families",
    "example": "a complete, commented run file of a family and a method",
    "deps": "what to install for a run file",
    "explain": "what a code means (P03, W01), and what to do about it",
    "doctor": "everything that may be wrong with this installation; loads all code",
    "new": "write a new plugin to begin with",
    "check": "prove that a plugin works: in seconds, on a CPU, without a download",
}


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Subcommand)
    for name, summary in SUBCOMMANDS.items():
        commands.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.")


class _Subcommand(argparse.ArgumentParser):
    """Gets its arguments, from the subcommand's module, when it is the one that was typed."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        import_module(f"fvd.cli.plugins.{self.prog.rpartition(' ')[2]}").configure(self)
        return super().parse_known_args(args, namespace)
