"""Which columns a parquet file has, from the bytes at its end: for `fvd check`, which loads no pyarrow."""

from __future__ import annotations

from pathlib import Path

MAGIC = b"PAR1"


def has_column(path: Path, column: str) -> bool | None:
    """Whether the metadata of a parquet file name ``column``, which no text in the file may happen to be: the names stand there
    as they are. None for a file that cannot be read as parquet."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 12:
                return None
            file.seek(-8, 2)
            length, magic = int.from_bytes(file.read(4), "little"), file.read(4)
            if magic != MAGIC or length > size - 12:
                return None
            file.seek(-8 - length, 2)
            return column.encode() in file.read(length)
    except OSError:
        return None


def first_file(folder: Path) -> Path | None:
    """The first parquet file of a folder, by name; None where there is none."""
    if folder.is_file():
        return folder
    return min(folder.rglob("*.parquet"), default=None)
