"""The verdict on every clip: kept, or dropped and why. Nothing is left out in silence."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fvd.data.captions import ClipSource
from fvd.data.video import VideoProbe, probe
from fvd.errors import DataError
from fvd.families import ClipPlan
from fvd.files import written_aside

ROW_VERSION = 1
"""Part of every row's id: raised when the same clip would be stored differently."""


@dataclass
class Verdict:
    """What becomes of a clip. ``reason`` is empty for a kept one. ``row_id`` names its encoding by content."""

    clip: ClipSource
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    probe: VideoProbe | None = None
    row_id: str = ""

    @property
    def kept(self) -> bool:
        return not self.reason

    @property
    def caption(self) -> str:
        """Of a kept clip."""
        assert self.clip.caption is not None
        return self.clip.caption

    def table_row(self) -> list[str]:
        return [self.clip.name, "kept" if self.kept else "dropped", "; ".join([self.reason, *self.notes]).strip("; ")]


TABLE_HEADERS = ("clip", "verdict", "why")


class Judge:
    """Gives verdicts in order, so that of two equal clips the second is the duplicate.

    plan: None for prompts alone, whose videos are not looked at.
    encoders_digest: of the encoders that will be used.
    """

    def __init__(self, plan: ClipPlan | None, encoders_digest: str) -> None:
        self._plan = plan
        self._encoders_digest = encoders_digest
        self._names: dict[str, str] = {}

    def judge(self, clip: ClipSource) -> Verdict:
        verdict = Verdict(clip, reason=clip.problem, notes=list(clip.notes))
        if verdict.kept:
            verdict.reason = self._caption_problem(clip)
        if verdict.kept and self._plan is not None:
            self._look_at_video(verdict, self._plan)
        if verdict.kept:
            self._name(verdict)
        return verdict

    def _caption_problem(self, clip: ClipSource) -> str:
        if clip.caption is None:
            return "no caption"
        return "" if clip.caption else "empty caption"

    def _look_at_video(self, verdict: Verdict, plan: ClipPlan) -> None:
        path = verdict.clip.path
        if path is None or not path.is_file():
            verdict.reason = "file missing"
            return
        try:
            verdict.probe = found = probe(path)
        except DataError as error:
            verdict.reason = _undecodable(error)
            return
        available, needed = found.frames_at(plan.fps), plan.geometry.num_frames
        if available < needed:
            verdict.reason = f"too short: has {available} frames at {plan.fps:g} fps, needs {needed}"
        scale = max(plan.geometry.width / found.width, plan.geometry.height / found.height)
        if scale > 1:
            verdict.notes.append(f"upscaled {scale:.2g}x from {found.width}x{found.height}")
        if found.fps < 0.98 * plan.fps:
            verdict.notes.append(f"{found.fps:.3g} fps: frames repeat")

    def _name(self, verdict: Verdict) -> None:
        video = "" if self._plan is None else f"{_file_digest(verdict.clip.path)}|{self._plan!r}"
        key = repr((ROW_VERSION, video, verdict.caption, self._encoders_digest))
        verdict.row_id = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        if verdict.row_id in self._names:
            verdict.reason = f"duplicate of {self._names[verdict.row_id]}"
        else:
            self._names[verdict.row_id] = verdict.clip.name


def drop_undecodable(verdict: Verdict, error: DataError) -> None:
    """A clip that looked whole and was not."""
    verdict.reason = _undecodable(error)


def _undecodable(error: DataError) -> str:
    return error.message if error.message.startswith("cannot be") else f"cannot be decoded: {error.message}"


def _file_digest(path: Path | None) -> str:
    assert path is not None
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_clips_csv(path: Path, verdicts: Sequence[Verdict]) -> None:
    """The table of all clips, with what was found in each file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["clip", "verdict", "reason", "notes", "frames", "fps", "width", "height", "caption", "id"])
    writer.writerows(_csv_row(verdict) for verdict in verdicts)
    with written_aside(path) as file:
        file.write(text.getvalue().encode())


def _csv_row(verdict: Verdict) -> Iterable[object]:
    found = verdict.probe
    video = ("", "", "", "") if found is None else (found.num_frames, f"{found.fps:.4g}", found.width, found.height)
    verdict_word = "kept" if verdict.kept else "dropped"
    caption = verdict.clip.caption or ""
    return (verdict.clip.name, verdict_word, verdict.reason, "; ".join(verdict.notes), *video, caption, verdict.row_id)
