"""Files appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fvd.errors import FvdError

ASIDE, REPLACED, DELETING = ".writing", ".replaced", ".deleting"
"""Suffixes of folders on their way in and out."""


def step_folder(step: int) -> str:
    """``step-00000100``: the name of what belongs to a step, sorted as the steps are."""
    return f"step-{step:08d}"


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


@contextmanager
def folder_written_aside(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of ``target`` (if it exists) when the block ends without an error.

    Everything is on the disk (fsync) before the name is. After an error nothing of it is left, and ``target`` is as it
    was. Raises FvdError when the system refuses.
    """
    aside = target.with_name(f".{target.name}{ASIDE}")
    old = target.with_name(f".{target.name}{REPLACED}")
    try:
        try:
            _remove(aside)
            aside.mkdir(parents=True)
            yield aside
            _sync(aside)
            replaces = target.exists()
            if replaces:
                _remove(old)
                target.rename(old)
            try:
                aside.rename(target)
            except OSError:
                if replaces:
                    old.rename(target)
                raise
        finally:
            _remove(aside)
            _remove(old)
    except OSError as error:
        raise FvdError(
            f"cannot write {target}: {error.strerror or error}", cure="Make room, or name another folder."
        ) from error


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a kill in the middle leaves no half of it under its name."""
    going = folder.with_name(f".{folder.name}{DELETING}")
    folder.rename(going)
    _remove(going)


def remove_folder_leftovers(parent: Path) -> None:
    """Delete what a killed `folder_written_aside` or `remove_folder` left in ``parent``."""
    for replaced in parent.glob(f".*{REPLACED}"):
        target = parent / replaced.name[1 : -len(REPLACED)]
        if target.exists():
            _remove(replaced)
        else:  # killed between the two renames: the old folder is whole, and still the one that counts
            replaced.rename(target)
    for suffix in (ASIDE, DELETING):
        for leftover in parent.glob(f".*{suffix}"):
            _remove(leftover)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text_aside(path: Path, text: str) -> None:
    """`written_aside` for a small text."""
    with written_aside(path) as file:
        file.write(text.encode())


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed `written_aside` left in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
