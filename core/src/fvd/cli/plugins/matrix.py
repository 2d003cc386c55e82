"""`fvd plugins matrix`: which methods run on which families, from descriptors alone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fvd.cli.plugins.output import align, labelled, print_json
from fvd.plugins.fit import describe_fit, missing_primitives
from fvd.specs import FamilySpec, MethodSpec

if TYPE_CHECKING:
    from fvd.cli.main import Arguments


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for tools: what is missing, by family and method")
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    families = labelled(args.plugins, FamilySpec)
    methods = labelled(args.plugins, MethodSpec)
    if args.json:
        print_json({name: {other: _missing(method, family) for other, method in methods} for name, family in families})
    elif not families or not methods:
        print(f"Installed families: {len(families)}, methods: {len(methods)}; a run needs one of each.")
        print("`fvd plugins list` shows what is installed.")
    else:
        rows = [[label, *(describe_fit(method, family) for _, method in methods)] for label, family in families]
        for line in align([["FAMILY", *(label for label, _ in methods)], *rows]):
            print(line)
    return 0


def _missing(method: MethodSpec, family: FamilySpec) -> list[str]:
    """The primitives that the method needs, of any role, and the family does not provide. Empty: it fits."""
    return sorted(frozenset().union(*missing_primitives(method, family).values()))
