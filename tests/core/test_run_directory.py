"""Who may write into a run directory, and which step a run starts from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_video import small_lock, small_roles, small_run

from fvd.checkpoint.manager import CheckpointManager
from fvd.checkpoint.resume import find_resume_point
from fvd.config.models import MethodConfig, RunConfig
from fvd.errors import CheckpointError
from fvd.rundir import RunDirectory


@pytest.fixture
def run_dir(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "out")


def config_for(run_dir: RunDirectory, **training: object) -> RunConfig:
    run = small_run(small_roles({"student": True}), MethodConfig(), training={"output_dir": str(run_dir.path), **training})
    return run.with_optimization_written_out()  # as a run file is when it has been loaded


def save(run_dir: RunDirectory, *steps: int, **training: object) -> CheckpointManager:
    """A run's directory with checkpoints of small roles."""
    config = config_for(run_dir, **training)
    run_dir.prepare(config, small_lock(config), source_name="run.yaml", source_text="")
    manager = CheckpointManager(run_dir.checkpoints)
    for step in steps:
        manager.save(step, small_roles({"student": True}), method_state={}, loader_state={}, lock=small_lock(config))
    return manager


def start_step(run_dir: RunDirectory, resume: str = "auto", **training: object) -> int | None:
    manager = CheckpointManager(run_dir.checkpoints)
    point = find_resume_point(config_for(run_dir, **training), resume, run_dir, manager)
    return point.checkpoint.step if point else None


# --- the lock --------------------------------------------------------------------------------------------------------
HOLD = """
import sys
from pathlib import Path
from fvd.rundir import RunDirectory
with RunDirectory(Path({path!r})).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time(run_dir):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(path=str(run_dir.path))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(CheckpointError, match="another process is running in") as caught, run_dir.locked():
        pytest.fail("two at once")
    assert "training.output_dir" in caught.value.cure
    holder.kill()  # a killed run must not lock its directory for ever
    holder.wait()
    with run_dir.locked():
        pass


def test_a_failed_run_gives_its_lock_back(run_dir):
    with pytest.raises(ZeroDivisionError), run_dir.locked():
        raise ZeroDivisionError
    with run_dir.locked():
        pass


def test_a_directory_with_nothing_but_a_lock_is_new(run_dir):
    with run_dir.locked():
        run_dir.refuse_foreign()
    run_dir.refuse_foreign()
    (run_dir.path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds no fvd run"):
        run_dir.refuse_foreign()


# --- videos ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, ["step-00000000", "step-00000002"]), (4, None)])
def test_videos_of_steps_that_are_made_again_are_forgotten(run_dir, step, kept):
    names = [f"step-{number:08d}" for number in (0, 2, 3, 4)]
    for name in (*names, ".step-00000002.writing"):
        (run_dir.validation / name).mkdir(parents=True)
        (run_dir.validation / name / "0.mp4").write_text("video")
    (run_dir.validation / "notes.txt").write_text("mine")
    run_dir.forget_after(step)
    left = sorted(path.name for path in run_dir.validation.iterdir())
    assert left == ["notes.txt", *(names if kept is None else kept)]


def test_nothing_to_forget(run_dir):
    run_dir.forget_after(0)
    assert not run_dir.path.exists()


# --- where a run starts ----------------------------------------------------------------------------------------------
def test_where_a_run_starts(run_dir):
    assert start_step(run_dir) is None
    assert start_step(run_dir, "never") is None
    save(run_dir, 2, 4)
    assert start_step(run_dir) == 4
    assert start_step(run_dir, max_train_steps=99, training_state_checkpointing_steps=1) == 4


def test_an_older_checkpoint_does_not_fall_upon_newer_ones(run_dir, tmp_path):
    manager = save(run_dir, 2, 4)
    with pytest.raises(CheckpointError, match=r"holds newer checkpoints \(step 4\) than .*step-00000002 \(step 2\)") as caught:
        start_step(run_dir, str(manager.path(2)))
    assert "training.output_dir" in caught.value.cure
    assert start_step(run_dir, str(manager.path(4))) == 4
    branch = RunDirectory(tmp_path / "branch")
    assert start_step(branch, str(manager.path(2))) == 2
    manager.path(4).rename(tmp_path / "elsewhere")
    assert start_step(run_dir, str(manager.path(2))) == 2


def test_never_refuses_what_is_there(run_dir):
    save(run_dir, 2)
    with pytest.raises(CheckpointError, match="already holds a run, at step 2"):
        start_step(run_dir, "never")


def steps_without_a_checkpoint(run_dir: RunDirectory) -> None:
    save(run_dir)
    run_dir.metrics_file.write_text('{"step": 1}\n')


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_another_run_that_has_made_steps_is_not_overwritten(run_dir, resume):
    """It was killed before its first checkpoint. The same run starts again; another one is a mistake."""
    steps_without_a_checkpoint(run_dir)
    assert start_step(run_dir, resume) is None
    assert start_step(run_dir, resume, max_train_steps=99) is None
    with pytest.raises(CheckpointError, match=r"training.learning_rate: 1e-05 -> 0.5") as caught:
        start_step(run_dir, resume, learning_rate=0.5)
    assert "no checkpoint yet" in caught.value.message


def test_a_run_that_made_no_step_may_be_mended(run_dir):
    save(run_dir)
    assert not run_dir.has_steps()
    assert start_step(run_dir, learning_rate=0.5) is None
    run_dir.metrics_file.write_text("")
    assert start_step(run_dir, learning_rate=0.5) is None


@pytest.mark.parametrize("text", ["- a list", "{", ""])
def test_a_damaged_description_is_told(run_dir, text):
    steps_without_a_checkpoint(run_dir)
    run_dir.run_file.write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.yaml"):
        start_step(run_dir)


def test_a_key_that_is_new_in_this_version_is_no_change(run_dir):
    """A run file that was stored before a setting existed is read with that setting's default."""
    manager = save(run_dir, 2)
    path: Path = manager.path(2) / "checkpoint.json"
    text = path.read_text()
    assert '"lr_power": 1.0,' in text
    path.write_text(text.replace('"lr_power": 1.0,', ""))
    assert start_step(run_dir) == 2
    with pytest.raises(CheckpointError, match=r"training.lr_power: 1.0 -> 2.0"):
        start_step(run_dir, lr_power=2.0)


def test_a_key_that_is_gone_in_this_version_is_shown(run_dir):
    manager = save(run_dir, 2)
    path: Path = manager.path(2) / "checkpoint.json"
    path.write_text(path.read_text().replace('"lr_power": 1.0,', '"lr_power": 1.0, "momentum": 0.9,'))
    with pytest.raises(CheckpointError, match=r"training.momentum: 0.9 -> None"):
        start_step(run_dir)
