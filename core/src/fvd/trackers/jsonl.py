"""``metrics.jsonl``: one JSON object a step, always written, whatever other trackers there are."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

from fvd.files import write_text_aside
from fvd.trackers.base import Tracker

logger = logging.getLogger(__name__)


class JsonlTracker(Tracker):
    """Appends ``{"step": n, "loss": …}``, every step. Non-finite numbers are written as strings, which keeps the file valid
    JSON. Rows that the disk refuses are kept and written with a later one; no line is ever half there."""

    def __init__(self, path: Path, *, start_step: int) -> None:
        self._path = path
        self._pending = ""
        self._refused = False
        if path.exists():
            _keep_until(path, start_step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        row = {"step": step, **{name: _json_number(value) for name, value in metrics.items()}}
        self._pending += json.dumps(row) + "\n"
        self._write()

    def finish(self) -> None:
        self._write()

    def _write(self) -> None:
        try:
            with self._path.open("ab", buffering=0) as file:
                whole = file.tell()
                try:
                    rows = self._pending.encode()
                    if file.write(rows) != len(rows):  # the last room of a disk: a part is written, without an error
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(whole)
                    raise
        except OSError as error:
            if not self._refused:
                logger.warning("%s cannot be written (%s); its rows are kept for later", self._path, error.strerror or error)
            self._refused = True
            return
        self._pending = ""


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _keep_until(path: Path, last_step: int) -> None:
    """Drop what a killed run logged after its last checkpoint: those steps are made again, and where it starts at 0 the
    validation before them too. A torn last line goes as well."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if step <= last_step and last_step > 0:
            kept.append(line + "\n")
    write_text_aside(path, "".join(kept))
