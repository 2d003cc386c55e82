"""Writing prepared rows so that a kill at any moment loses none and leaves only whole files.

Layout: ``worker_0/data_chunk_N.parquet``, zstd, as FastVideo lays it out. Until a file's worth of rows is there, each row
lies alone in ``.staged/`` under another suffix, invisible to programs that read ``**/*.parquet``.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fvd.files import remove_leftovers, written_aside

STAGING = ".staged"
"""Where rows lie until there are enough for a file; exists only while a preparation is unfinished."""

ROWS_PER_GROUP = 16
"""Small row groups: the loader reads one at a time, and a row of Wan at 480p is 8 MB."""


class ParquetClipWriter:
    """Appends rows to a folder of parquet files. Continues what an earlier writer left, whole or killed."""

    def __init__(self, folder: Path, schema: pa.Schema, *, rows_per_file: int = 64) -> None:
        self._schema = schema
        self._rows_per_file = rows_per_file
        self._chunks = folder / "worker_0"
        self._staging = folder / STAGING
        for place in (self._chunks, self._staging):
            remove_leftovers(place)
        self.name_column = "file_name" if "file_name" in schema.names else "caption"
        self._names: dict[str, str] = {}
        self._in_chunks = {path: self._read_ids(path) for path in sorted(self._chunks.glob("*.parquet"))}
        self._staged = {path: self._read_ids(path)[0] for path in sorted(self._staging.glob("*.row"))}
        chunked = {clip for ids in self._in_chunks.values() for clip in ids}
        for path in [path for path, clip in self._staged.items() if clip in chunked]:
            self._unstage(path)  # killed between writing a file and clearing its rows

    @property
    def ids(self) -> set[str]:
        """The ids of all rows, whether in a parquet file yet or not."""
        return {clip for ids in self._in_chunks.values() for clip in ids} | set(self._staged.values())

    def append(self, row: dict[str, object]) -> None:
        """Store one row; it is safe on the disk when this returns. Raises FvdError (disk full)."""
        number = int(max(self._staged).stem) + 1 if self._staged else 0
        path = self._staging / f"{number:08d}.row"
        self._write(path, pa.Table.from_pylist([row], schema=self._schema))
        self._staged[path] = str(row["id"])
        self._names[str(row["id"])] = str(row[self.name_column])
        if len(self._staged) >= self._rows_per_file:
            self.flush()

    def flush(self) -> None:
        """Move the rows that lie alone into a parquet file."""
        if not self._staged:
            return
        paths = sorted(self._staged)
        table = pa.concat_tables([_read_table(path) for path in paths])
        chunk = self._chunks / f"data_chunk_{self._next_number()}.parquet"
        self._write(chunk, table)
        self._in_chunks[chunk] = [self._staged[path] for path in paths]
        for path in paths:
            self._unstage(path)

    def close(self) -> None:
        """Flush, and remove the staging folder."""
        self.flush()
        if self._staging.exists():
            self._staging.rmdir()

    def names_outside(self, ids: Collection[str]) -> list[str]:
        """The rows that `keep_only` would remove, each by its file name, or its caption where the rows have none."""
        present = self.ids
        return [name for clip, name in self._names.items() if clip in present and clip not in ids]

    def keep_only(self, ids: Collection[str]) -> None:
        """Remove every row whose id is not in ``ids``; the others are copied, not made again."""
        wanted = set(ids)
        for path in [path for path, clip in self._staged.items() if clip not in wanted]:
            self._unstage(path)
        for path, clips in list(self._in_chunks.items()):
            kept = [clip for clip in clips if clip in wanted]
            if not kept:
                path.unlink()
                del self._in_chunks[path]
            elif len(kept) < len(clips):
                table = _read_table(path)
                self._write(path, table.filter(pc.is_in(table["id"], value_set=pa.array(kept))))
                self._in_chunks[path] = kept

    def _write(self, path: Path, table: pa.Table) -> None:
        with written_aside(path) as file:
            pq.write_table(table, file, compression="zstd", row_group_size=ROWS_PER_GROUP)

    def _unstage(self, path: Path) -> None:
        path.unlink()
        del self._staged[path]

    def _read_ids(self, path: Path) -> list[str]:
        with pq.ParquetFile(path) as file:
            rows = file.read(columns=["id", self.name_column])
        ids: list[str] = rows.column("id").to_pylist()
        self._names.update(zip(ids, rows.column(self.name_column).to_pylist(), strict=True))
        return ids

    def _next_number(self) -> int:
        return 1 + max((_chunk_number(path) for path in self._in_chunks), default=-1)


def _chunk_number(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def _read_table(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read()
