"""Which clips a folder holds and what their captions are: the layouts that `fvd data prepare` accepts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fvd.data.video import VIDEO_SUFFIXES
from fvd.errors import DataError, did_you_mean

PATH_KEYS = ("file_name", "video", "path", "video_path")
CAPTION_KEYS = ("caption", "prompt", "text", "cap")

LAYOUTS = f"""Accepted:
  a folder with videos2caption.json     [{{"path": "a.mp4", "cap": "..."}}], videos beside it or in videos/
  a folder with metadata.jsonl or .csv  columns {"/".join(PATH_KEYS)} and {"/".join(CAPTION_KEYS)}
  a folder of a.mp4 + a.txt             the caption of each clip in a text file of the same name
  (videos: {" ".join(VIDEO_SUFFIXES)})"""
TEXT_LAYOUTS = """With --text-only also: a .txt file with one prompt a line; a .jsonl or .csv file with captions."""


@dataclass(frozen=True)
class ClipSource:
    """One clip as it was found.

    name: how it is called in the table, relative to the folder. path: None for a prompt without a video.
    caption: None where there is none. problem: why it cannot be used, where that is known already.
    """

    name: str
    path: Path | None
    caption: str | None
    problem: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """All clips, and the layout in which they were found, in words."""

    layout: str
    clips: list[ClipSource]


def list_clips(source: Path) -> Listing:
    """The clips of a folder, or of one metadata file. Raises DataError for a folder without videos, and for metadata
    that cannot be read, with every bad line."""
    if not source.exists():
        raise DataError(f"{source} does not exist", cure=LAYOUTS)
    if source.is_file():
        return _list_metadata(source.parent, source)
    for name in ("videos2caption.json", "metadata.jsonl", "metadata.csv"):
        if (source / name).is_file():
            return _list_metadata(source, source / name)
    return _list_sidecars(source)


def list_prompts(source: Path) -> Listing:
    """The captions alone: of a .txt with a prompt a line, of metadata, or of a folder of clips (videos unread)."""
    if source.is_file() and source.suffix == ".txt":
        lines = _read_text(source).splitlines()
        prompts = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
        if not prompts:
            raise DataError(f"{source} holds no prompts", cure="Write one prompt a line.")
        clips = [ClipSource(f"{source.name}:{number}", None, prompt) for number, prompt in prompts]
        return Listing(f"prompts, one a line of {source.name}", clips)
    if source.is_file() and source.suffix in (".jsonl", ".csv"):
        records = _read_records(source)
        columns = _columns_used(records, CAPTION_KEYS, source)
        return Listing(f"column {columns} of {source.name}", [_prompt(record) for record in records])
    try:
        return list_clips(source)
    except DataError as error:
        raise DataError(error.message, cure=f"{error.cure}\n{TEXT_LAYOUTS}") from error


# --- metadata files ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Record:
    """One entry of a metadata file. place: ``metadata.jsonl:3`` with the number of its line, or ``a.json entry 3``."""

    place: str
    values: Mapping[str, object]

    def column(self, names: Sequence[str]) -> str | None:
        """Which of ``names`` this entry uses: the first that it fills, else the first that it has."""
        present = [name for name in names if name in self.values]
        filled = [name for name in present if self.values[name] not in (None, "", [])]
        return next(iter(filled or present), None)

    def lacks(self, names: Sequence[str]) -> str:
        """For an entry that has none of ``names``."""
        hints = "".join(did_you_mean(key, names) for key in self.values)
        return f"{self.place} has no {_one_of(names)}{hints}; it has: {', '.join(self.values) or 'nothing'}"


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _list_metadata(folder: Path, metadata: Path) -> Listing:
    records = _read_records(metadata)
    columns = [_columns_used(records, keys, metadata) for keys in (PATH_KEYS, CAPTION_KEYS)]
    roots = [folder / "videos", folder] if metadata.name == "videos2caption.json" else [folder, folder / "videos"]
    clips = [_metadata_clip(record, roots) for record in records]
    listed = {clip.path.resolve() for clip in clips if clip.path is not None}
    unlisted = [path for path in _find_videos(folder) if path.resolve() not in listed]
    clips.extend(ClipSource(_relative(path, folder), path, None, f"not listed in {metadata.name}") for path in unlisted)
    return Listing(f"{metadata.name} (columns {', '.join(columns)})", clips)


def _metadata_clip(record: Record, roots: Sequence[Path]) -> ClipSource:
    caption, problem, notes = _caption_in(record)
    key = record.column(PATH_KEYS)
    if key is None:
        return ClipSource(record.place, None, caption, record.lacks(PATH_KEYS))
    name = record.values[key]
    if not isinstance(name, str) or not name.strip():
        return ClipSource(record.place, None, caption, f"no {key}")
    candidates = [root / name for root in roots]
    path = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    return ClipSource(name, path, caption, problem, notes)


def _caption_in(record: Record) -> tuple[str | None, str, tuple[str, ...]]:
    """(caption, problem, notes) of an entry."""
    key = record.column(CAPTION_KEYS)
    return (None, record.lacks(CAPTION_KEYS), ()) if key is None else _caption_of(record.values[key])


def _caption_of(value: object) -> tuple[str | None, str, tuple[str, ...]]:
    """(caption, problem, notes). Of a list of captions the first is used."""
    if isinstance(value, list) and value:
        others = len(value) - 1
        caption, problem, notes = _caption_of(value[0])
        return caption, problem, (*notes, f"first of {others + 1} captions used") if others else notes
    if value is None or value == []:
        return None, "", ()
    if not isinstance(value, str):
        return None, f"the caption is not text but {type(value).__name__}", ()
    return value.strip(), "", ()


def _prompt(record: Record) -> ClipSource:
    caption, problem, notes = _caption_in(record)
    return ClipSource(record.place, None, caption, problem, notes)


def _columns_used(records: Sequence[Record], keys: Sequence[str], file: Path) -> str:
    """Which of ``keys`` the entries use, ``video`` or ``video/path``. Raises DataError where no entry has any."""
    used = dict.fromkeys(key for record in records if (key := record.column(keys)) is not None)
    if used:
        return "/".join(used)
    raise DataError(
        "\n".join([f"{file}: no entry has a column {_one_of(keys)}", records[0].lacks(keys)]),
        cure="Name one column so, in every entry.",
    )


def _read_records(file: Path) -> list[Record]:
    readers: dict[str, Callable[[Path, str], Iterable[Record]]] = {
        ".jsonl": _jsonl_records,
        ".csv": _csv_records,
        ".json": _json_records,
    }
    if file.suffix not in readers:
        raise DataError(f"{file} is not a folder of clips, nor metadata ({', '.join(readers)})", cure=LAYOUTS)
    records = list(readers[file.suffix](file, _read_text(file)))
    if not records:
        raise DataError(f"{file} lists no clips", cure=LAYOUTS)
    return records


def _jsonl_records(file: Path, text: str) -> Iterator[Record]:
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{file}:{number}: {error.msg}, column {error.colno}")
            continue
        if isinstance(values, dict):
            yield Record(f"{file.name}:{number}", values)
        else:
            problems.append(f"{file}:{number}: not an object {{...}}")
    if problems:
        raise DataError(
            "\n".join(problems), cure="Each line is one JSON object, " + '{"file_name": "a.mp4", "caption": "..."}.'
        )


def _csv_records(file: Path, text: str) -> Iterator[Record]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    problems = []
    try:
        for row in reader:
            line = reader.line_num - sum((cell or "").count("\n") for cell in row.values() if not isinstance(cell, list))
            if None in row:
                problems.append(f"{file}:{line}: more cells than the header has columns")
            else:
                yield Record(f"{file.name}:{line}", row)
    except csv.Error as error:
        problems.append(f"{file}:{reader.line_num + 1}: {error}")  # counted when a line is whole
    if problems:
        raise DataError("\n".join(problems), cure='A caption with commas goes between quotes: a.mp4,"a cat, asleep".')


def _json_records(file: Path, text: str) -> Iterator[Record]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: {error.msg}", cure=LAYOUTS) from error
    wrong = not isinstance(entries, list) or any(not isinstance(entry, dict) for entry in entries)
    if wrong:
        raise DataError(f"{file} is not a list of objects", cure=LAYOUTS)
    yield from (Record(f"{file.name} entry {number}", entry) for number, entry in enumerate(entries, 1))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (byte {error.start})", cure="Save it as UTF-8.") from error


# --- folders ----------------------------------------------------------------------------------------------------------
def _list_sidecars(folder: Path) -> Listing:
    videos = _find_videos(folder)
    if not videos:
        raise DataError(f"no videos in {folder}", cure=LAYOUTS)
    return Listing("videos with a .txt of the same name", [_sidecar_clip(video, folder) for video in videos])


def _sidecar_clip(video: Path, folder: Path) -> ClipSource:
    name, sidecar = _relative(video, folder), video.with_suffix(".txt")
    if not sidecar.is_file():
        return ClipSource(name, video, None)
    try:
        caption = _read_text(sidecar).strip()
    except DataError as error:
        return ClipSource(name, video, None, error.message)
    lines = len([line for line in caption.splitlines() if line.strip()])
    notes = (f"caption of {lines} lines taken as one",) if lines > 1 else ()
    return ClipSource(name, video, caption, notes=notes)


def _find_videos(folder: Path) -> list[Path]:
    """Sorted; hidden files and folders are left out."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
