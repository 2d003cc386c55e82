"""What each code means: a page of Markdown for each, beside this file. `fvd plugins explain` prints them."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def page_of(code: str) -> str:
    """The Markdown of one page. code: one of `titles`."""
    return (_FOLDER / f"{code}.md").read_text(encoding="utf-8")


def titles() -> dict[str, str]:
    """Every code in one line, sorted: ``{"P01": "the entry point names no module", …}``."""
    codes = sorted(path.stem for path in _FOLDER.glob("*.md"))
    return {code: page_of(code).partition("\n")[0].partition(": ")[2] for code in codes}
