"""The contract of a tracker, and the group that the trainer talks to."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fvd.config.models import RunConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackerContext:
    """What a tracker is built from. ``start_step``: 0, or the step that the run resumes from; what was logged after it
    will be logged again. ``log_dir``: the tracker's own folder in the run directory."""

    run: RunConfig
    run_dir: Path
    log_dir: Path
    start_step: int


class Tracker(ABC):
    """Where metrics and media go. The trainer owns trackers; one that fails is reported once and never ends a run."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Scalars of one step; finite or not."""

    def log_video(self, name: str, path: Path, step: int, caption: str) -> None:
        """A video file that has been written."""

    def log_file(self, path: Path) -> None:
        """A file that belongs to the run (the run file)."""

    def finish(self) -> None:
        """Flush and close. Called once, also after a failure."""


class TrackerGroup:
    """Several trackers as one. A tracker that raises is reported, closed and left out from then on."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.log(metrics, step))

    def log_video(self, name: str, path: Path, step: int, caption: str) -> None:
        self._each(lambda tracker: tracker.log_video(name, path, step, caption))

    def log_file(self, path: Path) -> None:
        self._each(lambda tracker: tracker.log_file(path))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self._trackers.clear()

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception:
                logger.warning("tracker %s failed and is left out from here on; the run continues", name, exc_info=True)
                del self._trackers[name]
