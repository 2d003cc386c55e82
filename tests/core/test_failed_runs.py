"""Runs in which training comes to nothing: what is kept, what is said, and what the same command does then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvd.checkpoint.tensors import save_tensors
from fvd.cli.main import main

RUINED = ("--set", "training.learning_rate=1e30")


def run(folder: Path, capfd: pytest.CaptureFixture[str], *arguments: str, **training: object) -> tuple[int, str]:
    """Exit status, and what was said. At 1e30 step 1 ruins the weights, and every gradient from step 2 on is NaN."""
    document = {
        "recipe": {"family": "toy", "method": "toy"},
        "roles": {"student": {"path": "random"}},
        "training": {
            "output_dir": str(folder / "out"),
            "train_batch_size": 8,
            "max_train_steps": 50,
            "training_state_checkpointing_steps": 0,
            "learning_rate": 1e-3,
            **training,
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    capfd.readouterr()
    status = main(["run", str(folder / "run.yaml"), *arguments])
    return status, capfd.readouterr().err


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out" / "checkpoints").iterdir())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_ruined_weights_are_kept_aside_and_no_run_goes_on_from_them(tmp_path, capfd):
    for _ in range(2):  # and the same command comes to the same end
        status, said = run(tmp_path, capfd, *RUINED)
        assert status == 1
        assert "[non_finite] step 11: the gradient of student is not finite" in said
        assert "There is no checkpoint from before step 2, where this began." in said
        assert str(tmp_path / "out/checkpoints/failed-00000011") in said
        assert "good" not in said
        assert kept(tmp_path) == ["failed-00000011"]


def test_checkpoints_of_the_failing_steps_are_set_aside_and_the_one_before_is_named(tmp_path, capfd):
    """With room for one alone: what was saved while it failed evicts none from before."""
    training = {"training_state_checkpointing_steps": 1, "checkpoints_total_limit": 1}
    for begins_at in (0, 1):
        status, said = run(tmp_path, capfd, *RUINED, **training)
        assert status == 1
        assert f"steps {begins_at} to 50" in said
        newest = tmp_path / "out/checkpoints/step-00000001"
        assert f"The newest checkpoint from before step 2, where this began, is {newest}; the same command continues" in said
        assert "[non_finite] step 11" in said
        names = kept(tmp_path)
        assert [name for name in names if name.startswith("step-")] == ["step-00000001"]
        assert names[-2:] == ["failed-00000011", "step-00000001"]


def test_the_state_of_a_failure_is_whole_and_continues_where_somebody_asks_for_it(tmp_path, capfd):
    run(tmp_path, capfd, *RUINED)
    failed = tmp_path / "out/checkpoints/failed-00000011"
    status, said = run(tmp_path, capfd, *RUINED, "--resume", str(failed))
    assert status == 1
    assert f"continuing from {failed}" in said
    assert "[non_finite] step 12: " in said  # the ten before are not forgotten
    assert "11 times in a row" in said
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize("max_train_steps", [8, 11, 3, 2])
@pytest.mark.parametrize("checkpointing", [0, 1])
def test_a_run_that_fails_at_its_end_never_has_nothing_to_do(tmp_path, capfd, max_train_steps, checkpointing):
    training = {"max_train_steps": max_train_steps, "training_state_checkpointing_steps": checkpointing}
    failed = f"failed-{max_train_steps:08d}"
    for arguments in ([], [], ["--resume", str(tmp_path / "out/checkpoints" / failed)]):
        status, said = run(tmp_path, capfd, *RUINED, *arguments, **training)
        assert status == 1, arguments
        assert "nothing to do" not in said
        assert f"step {max_train_steps}: the gradient of student is not finite" in said
        assert failed in kept(tmp_path)
        assert f"step-{max_train_steps:08d}" not in kept(tmp_path)


def test_a_run_that_fails_at_its_end_says_how_often(tmp_path, capfd):
    _, said = run(tmp_path, capfd, *RUINED, max_train_steps=8)
    assert "[non_finite] until step 8: " in said
    assert "7 of the last 8 times that it could have been otherwise" in said


def test_a_sound_run_is_as_before(tmp_path, capfd):
    assert run(tmp_path, capfd, max_train_steps=12)[0] == 0
    assert kept(tmp_path) == ["step-00000012"]
    status, said = run(tmp_path, capfd, max_train_steps=12)
    assert (status, "nothing to do" in said) == (0, True)


# --- a run that is stopped and goes on -------------------------------------------------------------------------------
def stopped_at(folder: Path, step: int) -> None:
    """As if a run had been stopped there: it has failed a little later, and what came after is removed."""
    checkpoints = folder / "out" / "checkpoints"
    for path in checkpoints.iterdir():
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    (checkpoints / f"failed-{step:08d}").rename(checkpoints / f"step-{step:08d}")


@pytest.mark.parametrize(("log_every", "ends_at"), [(1, 11), (3, 15), (4, 16)])
def test_what_was_found_before_a_stop_counts_after_it(tmp_path, capfd, log_every, ends_at):
    """Where only some steps are logged nothing is known of those between: ten in a row count from the last one that is."""
    training = {"training_state_checkpointing_steps": 6, "log_every_steps": log_every}
    run(tmp_path, capfd, *RUINED, **training)
    stopped_at(tmp_path, 6)
    if log_every == 1:  # a torn last line, and the validation of a step, are no steps
        with (tmp_path / "out/metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"step": 6, "validation/loss": 1.0}\n{"step": 7, "skipped/stu')
    _, said = run(tmp_path, capfd, *RUINED, **training)
    assert "steps 6 to 50" in said
    assert f"[non_finite] step {ends_at}: " in said
    assert said.count("[non_finite]") == 1  # the alarm was on, and is not said again
    if log_every == 1:
        assert rows(tmp_path)[-1]["health/skipped_total_student"] == 10.0


def test_a_branch_remembers_the_run_that_it_leaves(tmp_path, capfd):
    run(tmp_path, capfd, *RUINED, training_state_checkpointing_steps=6)
    stopped_at(tmp_path, 6)
    source = tmp_path / "out/checkpoints/step-00000006"
    branch = ("--resume", str(source), "--set", f"training.output_dir={tmp_path / 'branch'}")
    _, said = run(tmp_path, capfd, *RUINED, *branch, training_state_checkpointing_steps=6)
    assert "[non_finite] step 11: " in said
    assert "There is no checkpoint from before step 2" in said
    assert source.is_dir()  # another run's are left alone


def test_alarms_and_totals_of_a_run_in_parts_are_those_of_a_straight_one(tmp_path, capfd):
    """With a clip that about every other gradient exceeds, so that its share says something."""
    health: dict[str, list[dict[str, float]]] = {}
    for name, parts in (("straight", [120]), ("parts", [50, 51, 120])):
        (tmp_path / name).mkdir()
        for steps in parts:
            assert run(tmp_path / name, capfd, max_train_steps=steps, max_grad_norm=5.5)[0] == 0
        names = ("health/", "clipped/", "skipped/")
        logged = [{key: value for key, value in row.items() if key.startswith(names)} for row in rows(tmp_path / name)]
        health[name] = [{key: value for key, value in row.items() if "unmoved" not in key} for row in logged]
    assert health["parts"] == health["straight"]
    assert 0 < health["parts"][60]["health/clipped_share_student"] < 1


def test_a_failure_on_a_full_disk_is_told_as_what_it_is(tmp_path, capfd, monkeypatch):
    def refuse(tensors: dict[str, Any], checkpoint: Path) -> None:
        if "failed" in checkpoint.name:
            raise OSError("no room")
        save_tensors(tensors, checkpoint)

    monkeypatch.setattr("fvd.checkpoint.manager.save_tensors", refuse)
    status, said = run(tmp_path, capfd, *RUINED, training_state_checkpointing_steps=1)
    assert status == 1
    assert "[non_finite] step 11: " in said
    assert "no room" in said
    assert "What it left" not in said
    assert f"is {tmp_path / 'out/checkpoints/step-00000001'}" in said
    assert "failed-00000011" not in kept(tmp_path)
