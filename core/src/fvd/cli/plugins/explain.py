"""`fvd plugins explain P03`: what a code means, and what to do about it."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from fvd.errors import FvdError
from fvd.plugins.pages import page_of, titles

if TYPE_CHECKING:
    from fvd.cli.main import Arguments


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("codes", metavar="CODE", nargs="*", help="such as P03; default: list them all")
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    known = titles()
    codes = [code.upper() for code in args.codes]
    unknown = [code for code in codes if code not in known]
    if unknown:
        raise FvdError(f"there is no code {', '.join(unknown)}", cure="\n".join(["Codes:", *_listing(known)]))
    print("\n\n".join(map(_readable, codes)) if codes else "\n".join(_listing(known)))
    return 0


def _listing(known: dict[str, str]) -> list[str]:
    return [f"  {code}  {title}" for code, title in known.items()]


def _readable(code: str) -> str:
    """The page as a terminal shows it best: without comments, and with links as words."""
    text = re.sub(r"<!--.*?-->\n\n", "", page_of(code), flags=re.DOTALL)
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).strip()
