"""A folder of prepared data: its settings (``fvd-data.json``), whether it may be continued, and who may write into it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fvd.data.parquet_writer import STAGING
from fvd.errors import DataError
from fvd.files import remove_leftovers, written_aside

FORMAT = "fvd-data/2"
MANIFEST = "fvd-data.json"
CLIPS_CSV = "clips.csv"
LOCK = ".lock"
OURS = (MANIFEST, CLIPS_CSV, "worker_0", STAGING)
"""Everything that is written into such a folder and stays."""
_UNFINISHED = (LOCK, f".{MANIFEST}.tmp")
"""What a kill may leave in a folder before anything is prepared."""

ANOTHER_FOLDER = "Give --out another folder, or --overwrite to delete what is there and start anew."
MAX_NAMES_SHOWN = 5


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
    sampling: str | None = None
    """Of pairs: how the teacher was sampled."""

    def differences(self, other: Settings) -> list[str]:
        """``num_frames: 81 there, 49 now``, for what makes rows incomparable."""
        there, now = asdict(self), asdict(other)
        there["digest"], now["digest"] = f"{self.model} ({self.digest})", f"{other.model} ({other.digest})"
        changed = [key for key in there if key != "model" and asdict(self)[key] != asdict(other)[key]]
        labels = {"digest": "encoders (--model, --set)"}
        return [f"{labels.get(key, key)}: {there[key]} there, {now[key]} now" for key in changed]


@dataclass(frozen=True)
class Manifest:
    """What ``fvd-data.json`` says. source: the absolute path of the clips."""

    source: str
    settings: Settings

    def check_source(self, path: Path, now: str, lost: Sequence[str]) -> None:
        """Raise DataError when going on in ``path`` with the clips in ``now`` would delete the rows ``lost`` of clips from
        elsewhere. Clips that only moved lose none."""
        if not lost or now == self.source:
            return
        names = ", ".join(lost[:MAX_NAMES_SHOWN]) + (", …" if len(lost) > MAX_NAMES_SHOWN else "")
        raise DataError(
            f"{path} was prepared from {self.source}, and not from {now}: {len(lost)} of its rows would be deleted ({names})",
            cure=ANOTHER_FOLDER,
        )


class PreparedFolder:
    """The folder that `fvd data prepare --out` names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, settings: Settings, *, overwrite: bool) -> Manifest | None:
        """What the folder was prepared with; None where there is nothing to continue. Changes nothing.

        Raises DataError unless the folder is new, empty, or prepared with these settings (or to be overwritten).
        """
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} is a file", cure="Give --out the name of a folder.")
        if not self.path.exists() or all(entry.name in _UNFINISHED for entry in self.path.iterdir()):
            return None
        present = self._read()
        if present is None:
            raise DataError(
                f"{self.path} is not empty and was not made by `fvd data prepare`", cure="Give --out a new or an empty folder."
            )
        if overwrite:
            return None
        differences = present.settings.differences(settings)
        if differences:
            raise DataError(f"{self.path} holds data prepared otherwise:\n  " + "\n  ".join(differences), cure=ANOTHER_FOLDER)
        return present

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process; an empty one is gone afterwards. Raises DataError when another has it."""
        lock = FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise DataError(
                f"another `fvd data prepare` is at work in {self.path}",
                cure="Wait for it, stop it, or give --out another folder.",
            ) from None
        except OSError as error:
            raise DataError(
                f"cannot write into {self.path}: {error.strerror or error}", cure="Give --out another folder."
            ) from error
        try:
            yield
        finally:
            (self.path / LOCK).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # not empty: there is data
                self.path.rmdir()

    def begin(self, manifest: Manifest) -> None:
        """Make the folder ready for rows: after a kill at any later moment it can be continued."""
        self._write(manifest, {})

    def finish(self, manifest: Manifest, counts: Mapping[str, int]) -> None:
        self._write(manifest, counts)

    def clear(self) -> None:
        """Delete what `fvd data prepare` wrote."""
        remove_leftovers(self.path)
        for name in OURS:
            entry = self.path / name
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def _write(self, manifest: Manifest, counts: Mapping[str, int]) -> None:
        document = {
            "format": FORMAT,
            "source": manifest.source,
            "settings": asdict(manifest.settings),
            "counts": dict(counts),
        }
        with written_aside(self.path / MANIFEST) as file:
            file.write(json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")

    def _read(self) -> Manifest | None:
        path = self.path / MANIFEST
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise DataError(
                    f"{self.path} was prepared in format {document['format']}; this version writes {FORMAT}",
                    cure="Give --out another folder.",
                )
            return Manifest(document["source"], Settings(**document["settings"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read: {error!r}", cure="Give --out another folder.") from error
