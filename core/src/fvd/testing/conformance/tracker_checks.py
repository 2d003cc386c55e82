"""B501 to B503: a tracker, fed with what a run logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from unittest.mock import patch

from fvd.data.spec import VideoGeometry
from fvd.data.video import write_video
from fvd.testing.conformance.asserts import listed, require
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.family_build import synthetic_video
from fvd.testing.conformance.toy_models import toy_run
from fvd.trackers.base import Tracker, TrackerContext


def _build(subject: Subject, run_dir: Path, *, start_step: int = 0) -> Tracker:
    """As `fvd run` does; its folder exists by then."""
    log_dir = run_dir / "logs" / subject.spec.name
    log_dir.mkdir(parents=True, exist_ok=True)
    context = TrackerContext(run=toy_run(subject.plugins, run_dir), run_dir=run_dir, log_dir=log_dir, start_step=start_step)
    build: Callable[[TrackerContext], Tracker] = subject.plugins.load("tracker", subject.name)
    tracker = build(context)
    require(
        isinstance(tracker, Tracker), f"{subject.spec.target} must build a fvd.Tracker, it built a {type(tracker).__name__}"
    )
    return tracker


def _use(tracker: Tracker, run_dir: Path, first_step: int) -> None:
    """Two steps, one of which has gone wrong, a video and a file."""
    try:
        tracker.log({"train/loss": 0.5, "lr/student": 1e-5}, first_step)
        tracker.log({"train/loss": float("nan"), "grad_norm/student": float("inf"), "train/sigma": 0.25}, first_step + 1)
        tracker.log_video("validation/000_ode_2_steps", run_dir / "clip.mp4", first_step + 1, "a caption, with “quotes”")
        tracker.log_file(run_dir / "given-run.yaml")
    finally:
        tracker.finish()


@contextmanager
def _run_dir(subject: Subject) -> Iterator[Path]:
    """A run directory with a video and a run file; the working directory is an empty one beside it."""
    place = subject.make_folder("tracked")
    run_dir = place / "run"
    run_dir.mkdir()
    (place / "elsewhere").mkdir()
    write_video(run_dir / "clip.mp4", synthetic_video(VideoGeometry(num_frames=5, height=32, width=32), 0), 8.0)
    (run_dir / "given-run.yaml").write_text("recipe: {family: toy, method: toy}\n", encoding="utf-8")
    # A key in the environment must not make these runs anybody's.
    with chdir(place / "elsewhere"), patch.dict(os.environ, {"WANDB_MODE": "offline"}):
        yield run_dir


def logs(subject: Subject) -> None:
    """B501: numbers that are not finite, a video and a file too; and a run that ends before it has logged anything."""
    with _run_dir(subject) as run_dir:
        _use(_build(subject, run_dir), run_dir, 1)
    with _run_dir(subject) as run_dir:
        _build(subject, run_dir).finish()


def writes_into_its_folder(subject: Subject) -> None:
    """B502: nothing else in the run directory, and nothing in the working directory."""
    with _run_dir(subject) as run_dir:
        before = _files(run_dir.parent)
        _use(_build(subject, run_dir), run_dir, 1)
        log_dir = run_dir / "logs" / subject.spec.name
        after = _files(run_dir.parent)
        strays = [str(path.relative_to(run_dir.parent)) for path in after if path not in before and log_dir not in path.parents]
        require(not strays, f"it must write into context.log_dir only, and has written {listed(strays)}")
        gone = [str(path.relative_to(run_dir)) for path in before if path not in after or after[path] != before[path]]
        require(not gone, f"it has changed or removed {listed(gone)}, which are the run's")


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resumes(subject: Subject) -> None:
    """B503: a second tracker in the folder of the first, for a run that goes on from step 1."""
    with _run_dir(subject) as run_dir:
        _use(_build(subject, run_dir), run_dir, 1)
        _use(_build(subject, run_dir, start_step=1), run_dir, 2)
