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
        caption_key = _find_key(records, CAPTION_KEYS, source)
        return Listing(f"column {caption_key} of {source.name}", [_prompt(source, *record, caption_key) for record in records])
    try:
        return list_clips(source)
    except DataError as error:
        raise DataError(error.message, cure=f"{error.cure}\n{TEXT_LAYOUTS}") from error


# --- metadata files ---------------------------------------------------------------------------------------------------
Record = tuple[int, Mapping[str, object]]
"""Line number (of a json list: number of the entry) and its values."""


def _list_metadata(folder: Path, metadata: Path) -> Listing:
    records = _read_records(metadata)
    path_key = _find_key(records, PATH_KEYS, metadata)
    caption_key = _find_key(records, CAPTION_KEYS, metadata)
    roots = [folder / "videos", folder] if metadata.name == "videos2caption.json" else [folder, folder / "videos"]
    clips = [_metadata_clip(record, path_key, caption_key, roots) for record in records]
    listed = {clip.path.resolve() for clip in clips if clip.path is not None}
    unlisted = [path for path in _find_videos(folder) if path.resolve() not in listed]
    clips.extend(ClipSource(_relative(path, folder), path, None, f"not listed in {metadata.name}") for path in unlisted)
    return Listing(f"{metadata.name} (columns {path_key}, {caption_key})", clips)


def _metadata_clip(record: Record, path_key: str, caption_key: str, roots: Sequence[Path]) -> ClipSource:
    number, values = record
    name = values.get(path_key)
    caption, problem, notes = _caption_of(values.get(caption_key))
    if not isinstance(name, str) or not name.strip():
        return ClipSource(f"entry {number}", None, caption, f"no {path_key}")
    candidates = [root / name for root in roots]
    path = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    return ClipSource(name, path, caption, problem, notes)


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


def _prompt(source: Path, number: int, values: Mapping[str, object], caption_key: str) -> ClipSource:
    caption, problem, notes = _caption_of(values.get(caption_key))
    return ClipSource(f"{source.name}:{number}", None, caption, problem, notes)


def _find_key(records: Sequence[Record], keys: Sequence[str], file: Path) -> str:
    present = {key for _, values in records for key in values}
    for key in keys:
        if key in present:
            return key
    hints = "".join(did_you_mean(key, keys) for key in sorted(present))
    raise DataError(
        f"{file} has no column {' or '.join(keys)}{hints}",
        cure=f"It has: {', '.join(sorted(present)) or 'nothing'}. Rename one.",
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
            yield number, values
        else:
            problems.append(f"{file}:{number}: not an object {{...}}")
    if problems:
        raise DataError(
            "\n".join(problems), cure="Each line is one JSON object, " + '{"file_name": "a.mp4", "caption": "..."}.'
        )


def _csv_records(file: Path, text: str) -> Iterator[Record]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    for row in reader:
        if None in row:
            raise DataError(
                f"{file}:{reader.line_num}: more cells than the header has columns",
                cure='A caption with commas goes between quotes: a.mp4,"a cat, asleep".',
            )
        yield reader.line_num, row


def _json_records(file: Path, text: str) -> Iterator[Record]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: {error.msg}", cure=LAYOUTS) from error
    wrong = not isinstance(entries, list) or any(not isinstance(entry, dict) for entry in entries)
    if wrong:
        raise DataError(f"{file} is not a list of objects", cure=LAYOUTS)
    yield from enumerate(entries, 1)


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
