"""Validation prompts from json, jsonl, csv or txt."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvd.errors import DataError

CAPTION_KEYS = ("caption", "prompt", "text")
SUFFIXES = (".json", ".jsonl", ".csv", ".txt")


@dataclass(frozen=True)
class Prompt:
    """One prompt, and the seed of its initial noise: the same in every validation, so that videos compare."""

    text: str
    seed: int


def read_prompts(path: Path, *, first_seed: int) -> list[Prompt]:
    """All prompts of a file, in order; prompt i has the seed ``first_seed + i`` unless its row says ``seed``.

    Accepted: a list or ``{"data": [...]}`` in json; rows in jsonl and csv; a prompt a line in txt. Rows are strings or
    have a column caption, prompt or text. Raises DataError that names the file and row.
    """
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path}: there is no prompt in it")
    return [_prompt(row, path, index, first_seed + index) for index, row in enumerate(rows)]


def _rows(path: Path) -> Iterable[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the prompts {path}: {error}") from None
    try:
        match path.suffix.lower():
            case ".json":
                data = json.loads(text)
                return data["data"] if isinstance(data, dict) and "data" in data else data
            case ".jsonl":
                return [json.loads(line) for line in text.splitlines() if line.strip()]
            case ".csv":
                return list(csv.DictReader(text.splitlines()))
            case ".txt":
                return [line.strip() for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f"{path}: not valid {path.suffix[1:]}: {error}") from None
    raise DataError(f"{path}: prompts are read from {', '.join(SUFFIXES)}")


def _prompt(row: Any, path: Path, index: int, seed: int) -> Prompt:
    if isinstance(row, str):
        return Prompt(row, seed)
    if isinstance(row, dict):
        for key in CAPTION_KEYS:
            if isinstance(row.get(key), str) and row[key].strip():
                return Prompt(row[key].strip(), _seed(row, path, index, seed))
    raise DataError(
        f"{path}: row {index + 1} has no prompt", cure=f"Give it a column named {', '.join(CAPTION_KEYS[:-1])} or text."
    )


def _seed(row: dict[str, Any], path: Path, index: int, default: int) -> int:
    given = row.get("seed")
    if given in (None, ""):
        return default
    try:
        seed = int(given)
    except (TypeError, ValueError):
        raise DataError(f"{path}: row {index + 1}: seed {given!r} is not an integer") from None
    if not 0 <= seed < 2**63:
        raise DataError(f"{path}: row {index + 1}: seed {seed} must be at least 0 and below 2^63")
    return seed
