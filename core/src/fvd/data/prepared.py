"""A folder of prepared data: its settings (``fvd-data.json``), and whether it may be continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fvd.data.parquet_writer import STAGING
from fvd.errors import DataError
from fvd.files import remove_leftovers, written_aside

FORMAT = "fvd-data/1"
MANIFEST = "fvd-data.json"
CLIPS_CSV = "clips.csv"
OURS = (MANIFEST, CLIPS_CSV, "worker_0", STAGING)
"""Everything that is written into such a folder."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all rows of a folder have in common. ``digest`` is that of the encoders; ``model`` is where they came from,
    and may move."""

    schema: str
    family: str
    model: str
    digest: str
    fps: float | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None

    def differences(self, other: Settings) -> list[str]:
        """``num_frames: 81 there, 49 now``, for what makes rows incomparable."""
        there, now = asdict(self), asdict(other)
        there["digest"], now["digest"] = f"{self.model} ({self.digest})", f"{other.model} ({other.digest})"
        changed = [key for key in there if key != "model" and asdict(self)[key] != asdict(other)[key]]
        return [f"{'model' if key == 'digest' else key}: {there[key]} there, {now[key]} now" for key in changed]


class PreparedFolder:
    """The folder that `fvd data prepare --out` names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, settings: Settings, *, overwrite: bool) -> None:
        """Raise DataError unless this folder is new, empty, or prepared with these settings (or to be overwritten).
        Changes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} is a file", cure="Give --out the name of a folder.")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        present = self._read()
        if present is None:
            raise DataError(
                f"{self.path} is not empty and was not made by `fvd data prepare`", cure="Give --out a new or an empty folder."
            )
        differences = present.differences(settings)
        if differences and not overwrite:
            raise DataError(
                f"{self.path} holds data prepared otherwise:\n  " + "\n  ".join(differences),
                cure="Give --out another folder, or --overwrite to delete what is there and start anew.",
            )

    def begin(self, settings: Settings, *, overwrite: bool) -> None:
        """Make the folder ready for rows: after a kill at any later moment it can be continued."""
        if overwrite:
            self.clear()
        self._write(settings, {})

    def finish(self, settings: Settings, counts: Mapping[str, int]) -> None:
        self._write(settings, counts)

    def clear(self) -> None:
        """Delete what `fvd data prepare` wrote, and the folder where nothing else is in it."""
        if not self.path.is_dir():
            return
        remove_leftovers(self.path)
        for name in OURS:
            entry = self.path / name
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _write(self, settings: Settings, counts: Mapping[str, int]) -> None:
        document = {"format": FORMAT, "settings": asdict(settings), "counts": dict(counts)}
        with written_aside(self.path / MANIFEST) as file:
            file.write(json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")

    def _read(self) -> Settings | None:
        try:
            document = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{self.path / MANIFEST} is damaged: {error}", cure="Give --out another folder.") from error
        if document["format"] != FORMAT:
            raise DataError(f"{self.path} was prepared in format {document['format']}; this version writes {FORMAT}")
        return Settings(**document["settings"])
