"""`fvd plugins example NAME`: a complete, commented run file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fvd.errors import FvdError, PluginError, did_you_mean
from fvd.plugins.registry import split_kind

if TYPE_CHECKING:
    from fvd.cli.main import Arguments
    from fvd.plugins import Plugins

COUNTERPART = "toy"
"""The plugin in core, loaded on request, whose family and method go with what has no installed counterpart."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a family or a method")
    parser.add_argument("--family", default="", help="for the method NAME; default: the first installed one that fits, or toy")
    parser.add_argument("--method", default="", help="for the family NAME; default: the first installed one that fits, or toy")
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    from fvd.config.example import example_run_file, first_that_fits

    # A toy family would fit before an installed one, so it is not even loaded unless it is asked for or needed.
    named = [split_kind(name)[1] for name in (args.name, args.family, args.method) if name]
    plugins = args.plugins = args.load_plugins_with(*named)
    family, method = _what_is_given(plugins, args.name, args.family, args.method)
    if not family or not method:
        found = first_that_fits(plugins, family=family, method=method)
        if not found:
            plugins = args.load_plugins_with(COUNTERPART, *named)
            found = first_that_fits(plugins, family=family, method=method)
        if not found:
            raise _nothing_fits(args.name)
        family, method = family or found, method or found
    print(example_run_file(plugins, family, method), end="")
    return 0


def _what_is_given(plugins: Plugins, name: str, family: str, method: str) -> tuple[str, str]:
    """(family, method), one of them perhaps empty. A name that both have is the family's, unless another is given."""
    kinds = {spec.kind for spec in plugins.meant_by(name)} & {"family", "method"}
    named = split_kind(name)[1]
    if family and method:
        raise FvdError("--family and --method are given, and NAME is one of the two", cure="Give one of the options.")
    if "family" in kinds and not family:
        return named, method
    if "method" in kinds and not method:
        return family, named
    if kinds:
        kind = min(kinds)
        option = f"--{kind}"
        raise FvdError(f"{name} is itself a {kind}, and {option} names another", cure="Give the other option, or none.")
    raise _unknown(plugins, name)


def _unknown(plugins: Plugins, name: str) -> PluginError:
    from fvd.plugins.missing import catalogue

    known = catalogue()
    for kind in ("family", "method"):
        if name in known[kind]:
            plugins.spec(kind, name)  # raises, and says what is wrong with the plugin or where to get it
    there = sorted({*plugins.names("family"), *plugins.names("method")})
    return PluginError(
        f"there is no family or method {name!r}{did_you_mean(name, there)} [P08]",
        cure=f"Installed: {', '.join(there) or 'none'}.",
    )


def _nothing_fits(name: str) -> FvdError:
    return FvdError(
        f"nothing that is installed fits {name}, not even the {COUNTERPART} counterpart",
        cure="`fvd plugins matrix` shows what is missing.",
    )
