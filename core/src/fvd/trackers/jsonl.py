"""``metrics.jsonl``: one JSON object a step, always written, whatever other trackers there are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from fvd.files import write_text_aside
from fvd.trackers.base import Tracker


class JsonlTracker(Tracker):
    """Appends ``{"step": n, "loss": …}``; flushed every step. Non-finite numbers are written as strings, which keeps
    the file valid JSON."""

    def __init__(self, path: Path, *, start_step: int) -> None:
        if path.exists():
            _keep_until(path, start_step)
        self._file = path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        row = {"step": step, **{name: _json_number(value) for name, value in metrics.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def finish(self) -> None:
        self._file.close()


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _keep_until(path: Path, last_step: int) -> None:
    """Drop what a killed run logged after its last checkpoint: those steps are made again. A torn last line goes too."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if step <= last_step:
            kept.append(line + "\n")
    write_text_aside(path, "".join(kept))
