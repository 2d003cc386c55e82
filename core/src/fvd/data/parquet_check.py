"""What can be known about parquet files without reading a tensor: columns, shapes, dtypes, absent values."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fvd.data.parquet_schema import DTYPES, parse_dtype, triplet
from fvd.data.spec import FieldSpec
from fvd.errors import DataError, did_you_mean

MAX_PROBLEMS_SHOWN = 20
PREPARE_AGAIN = (
    "Prepare the data for this model again: `fvd data prepare CLIPS --family FAMILY --model MODEL --out FOLDER` "
    "(--overwrite for the same folder)."
)
MAKE_PAIRS = (
    "Make pairs with the teacher: `fvd data pairs --captions FILE --family FAMILY --model MODEL --out FOLDER "
    "--keep-timesteps T,T,...`, and name that folder in training.data_path."
)

Shape = tuple[int, ...]


@dataclass
class FieldFindings:
    """One field over all files. ``places``: for each shape (ragged axis left out) where it occurs."""

    places: dict[Shape, list[str]] = field(default_factory=lambda: defaultdict(list))
    missing: list[str] = field(default_factory=list)
    """Files without the columns, and rows without a value."""
    total_bytes: int = 0


@dataclass
class Inspection:
    """What was found in all files so far."""

    fields: dict[str, FieldFindings]
    problems: list[str] = field(default_factory=list)


def place(path: Path, row_group: int, row: int, clip: object) -> str:
    """How a row is named in messages; ``row`` counts inside its row group."""
    return f"{path}: row group {row_group}, row {row}, clip {clip!r}"


def fixed_axes(spec: FieldSpec) -> list[int]:
    """Positions of the axes on which all samples must agree."""
    return [position for position, axis in enumerate(spec.axes) if axis != spec.ragged]


def inspect_file(path: Path, fields: Sequence[FieldSpec], findings: Inspection) -> pq.FileMetaData | None:
    """Check one file and add what it holds to ``findings``; None when it cannot be read at all."""
    try:
        with pq.ParquetFile(path) as file:
            present = _fields_with_columns(path, file.schema_arrow, fields, findings)
            columns = [column for spec in present for column in triplet(spec.name)[1:]]
            names = ["id"] if "id" in file.schema_arrow.names else []
            table = file.read(columns=[*names, *columns])
            _inspect_rows(path, file.metadata, table, present, findings)
            return file.metadata
    except (pa.ArrowException, OSError) as error:
        findings.problems.append(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}")
        return None


def _fields_with_columns(path: Path, schema: pa.Schema, fields: Sequence[FieldSpec], findings: Inspection) -> list[FieldSpec]:
    present = []
    for spec in fields:
        absent = [column for column in triplet(spec.name) if column not in schema.names]
        if absent:
            findings.fields[spec.name].missing.append(
                f"{path}: no column {', '.join(absent)}" + did_you_mean(absent[0], schema.names)
            )
            continue
        wrong = _wrong_types(spec.name, schema)
        findings.problems.extend(f"{path}: {text}" for text in wrong)
        if not wrong:
            present.append(spec)
    return present


def _wrong_types(name: str, schema: pa.Schema) -> list[str]:
    data, shape, dtype = (schema.field(column).type for column in triplet(name))
    wrong = []
    if not (pa.types.is_binary(data) or pa.types.is_large_binary(data)):
        wrong.append(f"column {name}_bytes is {data}, not binary")
    if not (pa.types.is_list(shape) and pa.types.is_integer(shape.value_type)):
        wrong.append(f"column {name}_shape is {shape}, not a list of integers")
    if not (pa.types.is_string(dtype) or pa.types.is_large_string(dtype)):
        wrong.append(f"column {name}_dtype is {dtype}, not string")
    return wrong


def _inspect_rows(
    path: Path, metadata: pq.FileMetaData, table: pa.Table, fields: Sequence[FieldSpec], findings: Inspection
) -> None:
    clips = table.column("id").to_pylist() if "id" in table.column_names else ["?"] * table.num_rows
    rows = [(group, row) for group in range(metadata.num_row_groups) for row in range(metadata.row_group(group).num_rows)]
    for spec in fields:
        found = findings.fields[spec.name]
        shapes = table.column(f"{spec.name}_shape").to_pylist()
        dtypes = table.column(f"{spec.name}_dtype").to_pylist()
        for (group, row), clip, shape, dtype in zip(rows, clips, shapes, dtypes, strict=True):
            where = place(path, group, row, clip)
            if not shape and not dtype:
                found.missing.append(f"{where}: no {spec.name}")
                continue
            shape = without_batch_axis(spec, shape or [])
            problem = _row_problem(spec, shape, dtype or "")
            if problem:
                findings.problems.append(f"{where}: {spec.name} {problem}")
            else:
                element = parse_dtype(dtype)
                assert element is not None  # else it was a problem
                found.total_bytes += math.prod(shape) * element.itemsize
                found.places[tuple(shape[position] for position in fixed_axes(spec))].append(where)


def without_batch_axis(spec: FieldSpec, shape: Sequence[int]) -> list[int]:
    """``shape`` without a leading axis of size 1 that is one too many: some programs store a batch of one."""
    return list(shape[1:] if len(shape) == len(spec.axes) + 1 and shape[0] == 1 else shape)


def _row_problem(spec: FieldSpec, shape: list[int], dtype: str) -> str:
    axes = ", ".join(spec.axes)
    if len(shape) != len(spec.axes):
        return f"has shape {shape}, expected {len(spec.axes)} axes [{axes}]"
    wrong = [
        f"{axis} = {spec.sizes[axis]}"
        for axis, size in zip(spec.axes, shape, strict=True)
        if spec.sizes.get(axis, size) != size
    ]
    if wrong:
        return f"has shape {shape}, expected [{axes}] with {', '.join(wrong)}"
    if min(shape) < 1:
        return f"has shape {shape}: an axis of size {min(shape)}"
    if parse_dtype(dtype) is None:
        return f"has dtype {dtype!r}; known: {', '.join(DTYPES)}"
    return ""


def disagreements(spec: FieldSpec, found: FieldFindings) -> list[str]:
    """Rows whose shape is not the one that most rows have."""
    if len(found.places) <= 1:
        return []
    usual = max(found.places, key=lambda shape: len(found.places[shape]))
    axes = ", ".join(spec.axes[position] for position in fixed_axes(spec))
    return [
        f"{where}: {spec.name} has [{axes}] = {list(shape)}, but {len(found.places[usual])} rows have {list(usual)}"
        for shape, places in found.places.items()
        if shape != usual
        for where in places
    ]


def raise_problems(problems: Sequence[str], what: str, cure: str = PREPARE_AGAIN) -> None:
    """DataError with all problems (the first few in full), or nothing."""
    if not problems:
        return
    shown = list(problems[:MAX_PROBLEMS_SHOWN])
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - len(shown)} more")
    raise DataError(f"{what}:\n  " + "\n  ".join(shown), cure=cure)
