"""Trackers: real files of real libraries, and failures that stay their own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from small_video import small_roles, small_run

from fvd.config.models import MethodConfig
from fvd.trackers.base import Tracker, TrackerContext, TrackerGroup
from fvd.trackers.jsonl import JsonlTracker


def context(tmp_path: Path, start_step: int = 0) -> TrackerContext:
    run = small_run(small_roles({"student": True}), MethodConfig())
    log_dir = tmp_path / "logs/wandb"
    log_dir.mkdir(parents=True, exist_ok=True)
    return TrackerContext(run=run, run_dir=tmp_path, log_dir=log_dir, start_step=start_step)


def test_jsonl_is_valid_json_whatever_the_numbers(tmp_path):
    tracker = JsonlTracker(tmp_path / "m.jsonl", start_step=0)
    tracker.log({"loss": 0.5, "bad": math.nan, "worse": math.inf}, 1)
    tracker.finish()
    row = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {"step": 1, "loss": 0.5, "bad": "nan", "worse": "inf"}


def test_jsonl_forgets_what_will_be_logged_again(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 4, "a"', encoding="utf-8")
    tracker = JsonlTracker(path, start_step=2)
    tracker.log({"a": 30.0}, 3)
    tracker.finish()
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 2, 30.0]


def test_jsonl_keeps_rows_that_the_disk_refuses(tmp_path, caplog):
    path = tmp_path / "m.jsonl"
    tracker = JsonlTracker(path, start_step=0)
    tracker.log({"a": 1.0}, 1)
    path.rename(tmp_path / "aside")
    path.mkdir()  # now it cannot be written
    for step in (2, 3):
        tracker.log({"a": 1.0}, step)
    path.rmdir()
    (tmp_path / "aside").rename(path)
    tracker.log({"a": 1.0}, 4)
    tracker.finish()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert len([record for record in caplog.records if "cannot be written" in record.getMessage()]) == 1  # said once


FULL = """
import json, resource, signal, sys
from pathlib import Path
from fvd.trackers.jsonl import JsonlTracker
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path({path!r})
tracker = JsonlTracker(path, start_step=0)
tracker.log({{"a": 1.0}}, 1)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 7, hard))
tracker.log({{"a": 2.0}}, 2)
assert path.read_text() == json.dumps({{"step": 1, "a": 1.0}}) + "\\n", path.read_text()
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
tracker.finish()
"""


def test_jsonl_has_no_half_line_on_a_disk_with_room_for_half_a_line(tmp_path):
    """The system then writes a part and says so by a number, not by an error."""
    path = tmp_path / "m.jsonl"
    program = FULL.format(path=str(path))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


class Failing(Tracker):
    def __init__(self):
        self.calls = 0

    def log(self, metrics, step):
        self.calls += 1
        raise RuntimeError("the server is down")


class Remembering(Tracker):
    def __init__(self):
        self.steps = []
        self.finished = False

    def log(self, metrics, step):
        self.steps.append(step)

    def finish(self):
        self.finished = True


def test_a_failing_tracker_is_left_out_and_the_others_go_on(caplog):
    failing, good = Failing(), Remembering()
    group = TrackerGroup({"failing": failing, "good": good})
    group.log({"a": 1.0}, 1)
    group.log({"a": 1.0}, 2)
    group.finish()
    assert failing.calls == 1
    assert good.steps == [1, 2]
    assert good.finished
    assert "tracker failing failed" in caplog.text


def test_tensorboard_holds_scalars_and_moving_images(tmp_path, write_mp4):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from fvd.trackers.tensorboard import build_tensorboard

    tracker = build_tensorboard(context(tmp_path))
    tracker.log({"train/loss": 0.25}, 3)
    tracker.log_video("validation/0", write_mp4(tmp_path / "v.mp4", frames=5), 3, "a square")
    tracker.finish()
    events = EventAccumulator(str(tmp_path / "logs/wandb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.25)]
    image = events.Images("validation/0")[0].encoded_image_string
    assert image.startswith(b"GIF89a")

    import io

    from PIL import Image

    assert Image.open(io.BytesIO(image)).n_frames == 5


def test_tensorboard_hides_what_a_resumed_run_logs_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from fvd.trackers.tensorboard import build_tensorboard

    for start_step, steps, value in ((0, range(1, 6), 1.0), (3, range(4, 7), 2.0)):
        tracker = build_tensorboard(context(tmp_path, start_step))
        for step in steps:
            tracker.log({"train/loss": value}, step)
        tracker.finish()
    events = EventAccumulator(str(tmp_path / "logs/wandb"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


WANDB = """
import os, sys
from pathlib import Path
sys.path[:0] = {folders!r}
from test_trackers import context
from fvd.trackers.wandb import build_wandb
tmp_path = Path({tmp_path!r})
tracker = build_wandb(context(tmp_path))
tracker.log({{"train/loss": 0.25}}, 1)
tracker.log_video("validation/0", tmp_path / "v.mp4", 1, "a square")
(tmp_path / "run.yaml").write_text("recipe: x")
tracker.log_file(tmp_path / "run.yaml")
tracker.finish()
"""


def test_wandb_without_a_key_records_offline_and_asks_nothing(tmp_path, write_mp4):
    """A process of its own without a terminal, a key or a home: a prompt would fail it."""
    write_mp4(tmp_path / "v.mp4")
    here = Path(__file__).parent
    program = WANDB.format(folders=[str(here), str(here.parent / "support")], tmp_path=str(tmp_path))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, timeout=120
    )
    assert result.returncode == 0, result.stderr
    (recorded,) = (tmp_path / "logs").glob("**/*.wandb")
    assert recorded in list((tmp_path / "logs/wandb").glob("offline-run-*/*.wandb"))
    assert recorded.stat().st_size > 0
    assert list((tmp_path / "logs/wandb").glob("offline-run-*/files/run.yaml"))
    assert list((tmp_path / "logs/wandb").glob("offline-run-*/files/media/videos/**/*.mp4"))
    assert (tmp_path / "logs/wandb/run-id").read_text()


def test_a_resumed_run_keeps_its_wandb_id_and_one_that_starts_anew_gets_another(tmp_path, monkeypatch):
    """wandb drops what is logged for a step that its run already has: a fresh start needs a fresh run."""
    import wandb

    from fvd.trackers.wandb import build_wandb

    ids = []
    monkeypatch.setattr(wandb, "init", lambda **settings: ids.append(settings["id"]))
    for start_step in (0, 3, 5, 0, 2):
        build_wandb(context(tmp_path, start_step))
    first, resumed, resumed_again, anew, resumed_anew = ids
    assert first == resumed == resumed_again
    assert anew == resumed_anew
    assert anew != first
