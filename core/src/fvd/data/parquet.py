"""The dataset kind ``parquet``: prepared latents and text embeddings, in the schemas of `fvd.data.parquet_schema`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fvd.data.dataset import Sample
from fvd.data.parquet_check import (
    MAKE_PAIRS,
    PREPARE_AGAIN,
    FieldFindings,
    Inspection,
    disagreements,
    fixed_axes,
    inspect_file,
    place,
    raise_problems,
    without_batch_axis,
)
from fvd.data.parquet_schema import T2V_SCHEMA, TEXT_ONLY_SCHEMA, triplet, unpack_tensor
from fvd.data.parquet_writer import STAGING, ParquetClipWriter
from fvd.data.spec import DataSpec, FieldSpec
from fvd.errors import DataError

__all__ = ["T2V_SCHEMA", "TEXT_ONLY_SCHEMA", "ParquetClipWriter", "ParquetDataset", "open_parquet"]


@dataclass(frozen=True)
class RowGroup:
    """One chunk: a row group of a file."""

    path: Path
    metadata: pq.FileMetaData
    index: int


class ParquetDataset:
    """Opened parquet files; a chunk is a row group. See `fvd.data.dataset.ChunkedDataset`."""

    def __init__(
        self,
        chunks: Sequence[RowGroup],
        fields: Sequence[FieldSpec],
        shapes: Mapping[str, Mapping[str, int]],
        sample_bytes: int,
    ) -> None:
        self._chunks = list(chunks)
        self._fields = list(fields)
        self.chunk_sizes = [chunk.metadata.row_group(chunk.index).num_rows for chunk in chunks]
        self.shapes = shapes
        self.sample_bytes = sample_bytes

    def sample_ids(self, index: int) -> list[str]:
        """The clips' ids; of a row without one its place."""
        chunk = self._chunks[index]
        with _opened(chunk) as file:
            named = "id" in file.schema_arrow.names
            ids = (
                file.read_row_group(chunk.index, columns=["id"])["id"].to_pylist()
                if named
                else [None] * self.chunk_sizes[index]
            )
        return [str(id or f"{chunk.path.name}/{chunk.index}/{row}") for row, id in enumerate(ids)]

    def read_chunk(self, index: int) -> list[Sample]:
        chunk = self._chunks[index]
        with _opened(chunk) as file:
            metadata_columns = _metadata_columns(file.schema_arrow.names)
            tensor_columns = [column for spec in self._fields for column in triplet(spec.name)]
            table = file.read_row_group(chunk.index, columns=[*metadata_columns, *tensor_columns])
        infos = table.select(metadata_columns).to_pylist()
        return [Sample(self._read_tensors(chunk, table, row, info), info) for row, info in enumerate(infos)]

    def _read_tensors(self, chunk: RowGroup, table: pa.Table, row: int, info: dict[str, object]) -> dict[str, Tensor]:
        tensors = {}
        for spec in self._fields:
            data, shape, dtype = (table.column(column)[row] for column in triplet(spec.name))
            try:
                tensor = unpack_tensor(memoryview(data.as_buffer() or b""), shape.as_py(), dtype.as_py())
                tensor = tensor.reshape(without_batch_axis(spec, tensor.shape))
                if spec.source in ("latents", "trajectory") and tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    bad = int((~torch.isfinite(tensor)).sum())
                    raise DataError(f"{bad} of {tensor.numel()} values are NaN or infinite")
            except DataError as error:
                where = place(chunk.path, chunk.index, row, info.get("id", "?"))
                raise DataError(f"{where}: {spec.name}: {error.message}", cure=PREPARE_AGAIN) from error
            tensors[spec.name] = tensor
        return tensors


@contextmanager
def _opened(chunk: RowGroup) -> Iterator[pq.ParquetFile]:
    """The file of a row group; what goes wrong with it becomes a DataError."""
    try:
        with pq.ParquetFile(chunk.path, metadata=chunk.metadata) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{chunk.path}: row group {chunk.index}: cannot be read: {str(error).splitlines()[0]}", cure=PREPARE_AGAIN
        ) from error


def open_parquet(sources: Sequence[tuple[Path, int]], spec: DataSpec, *, needs_latents: bool) -> ParquetDataset:
    """Open and check every ``**/*.parquet`` under each (folder, repeats), without reading a tensor.

    needs_latents: False makes the fields with ``source="latents"`` optional; where all rows have them they are read all
        the same, since they tell the shape.
    Raises DataError with everything that is wrong: files that are not parquet, missing columns, wrong ranks or sizes,
        unknown dtypes, shapes that differ between rows, required tensors that are absent.
    """
    files = [(path, repeats) for folder, repeats in sources for path in _find_files(folder)]
    findings = Inspection({field.name: FieldFindings() for field in spec.fields})
    metadata = {path: inspect_file(path, spec.fields, findings) for path in dict.fromkeys(path for path, _ in files)}
    used = [field for field in spec.fields if not findings.fields[field.name].missing]
    for field in spec.fields:
        if field in used:
            findings.problems.extend(disagreements(field, findings.fields[field.name]))
        elif field.required and (needs_latents or field.source != "latents"):
            findings.problems.extend(findings.fields[field.name].missing)
    trajectories = [findings.fields[field.name] for field in spec.fields if field.source == "trajectory"]
    no_pairs = {problem for found in trajectories for problem in found.missing}
    raise_problems(
        findings.problems,
        f"the data cannot be trained on ({len(findings.problems)} problem{'s' * (len(findings.problems) > 1)})",
        cure=MAKE_PAIRS if set(findings.problems) <= no_pairs else PREPARE_AGAIN,
    )

    chunks = [
        RowGroup(path, found, index)
        for path, repeats in files
        if (found := metadata[path]) is not None
        for _ in range(repeats)
        for index in range(found.num_row_groups)
        if found.row_group(index).num_rows > 0
    ]
    if not chunks:
        folders = ", ".join(str(folder) for folder, _ in sources)
        raise DataError(f"no rows in the parquet files of {folders or 'training.data_path'}", cure=PREPARE_AGAIN)
    rows = sum(found.num_rows for found in metadata.values() if found is not None)
    total_bytes = sum(findings.fields[field.name].total_bytes for field in used)
    return ParquetDataset(chunks, used, {field.name: _agreed_sizes(field, findings) for field in used}, total_bytes // rows)


def _find_files(folder: Path) -> list[Path]:
    if not folder.exists():
        raise DataError(f"data folder {folder} does not exist", cure=f"Check its name in the run file. {PREPARE_AGAIN}")
    if (folder / STAGING).exists():
        raise DataError(
            f"{folder} is not complete: `fvd data prepare` was interrupted, or is still at work",
            cure="Run that command again, without --overwrite: it continues where it ended.",
        )
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.parquet"))
    if not files:
        raise DataError(f"no parquet files in {folder}", cure=f"Is it a folder of raw clips? {PREPARE_AGAIN}")
    return files


def _agreed_sizes(field: FieldSpec, findings: Inspection) -> dict[str, int]:
    (shape,) = findings.fields[field.name].places
    return {field.axes[position]: size for position, size in zip(fixed_axes(field), shape, strict=True)}


def _metadata_columns(names: Sequence[str]) -> list[str]:
    """Columns that belong to no tensor."""
    tensors = {name.removesuffix("_bytes") for name in names if name.endswith("_bytes")}
    return [name for name in names if not any(name in triplet(tensor) for tensor in tensors)]
