"""Files appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fvd.errors import FvdError


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the name ``path`` when the block ends without an error.

    The bytes are on the disk (fsync) before the name is. Raises FvdError when the system refuses (disk full, no
    permission), and leaves neither a part of the file nor a changed ``path`` behind.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FvdError(
            f"cannot write {path}: {error.strerror or error}",
            cure="What was written before is whole. Make room (or see to the permissions), then run the command again.",
        ) from error


def write_text_aside(path: Path, text: str) -> None:
    """`written_aside` for a small text."""
    with written_aside(path) as file:
        file.write(text.encode())


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed `written_aside` left in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
