"""The roles' own clocks, as far as a run file says them: without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from fvd.config.load import load_run_file

pytest.importorskip("fvd_dmd2")


def warnings(
    folder: Path, *, steps: int = 10, interval: int = 5, student: str = "", training: str = "", method: str = ""
) -> dict[str, str]:
    """key -> messages."""
    roles = f"{{student: {{path: random, optimizer: {{{student}}}}}, teacher: {{path: random}}, critic: {{path: random}}}}"
    path = folder / "run.yaml"
    path.write_text(
        f"recipe: {{family: toy, method: dmd2}}\nroles: {roles}\n"
        f"training: {{output_dir: out, max_train_steps: {steps}, {training}}}\n"
        f"method_config: {{generator_update_interval: {interval}, {method}}}\n",
        encoding="utf-8",
    )
    found: dict[str, str] = {}
    for problem in load_run_file(path).problems:
        assert problem.severity != "error", problem
        if problem.severity == "warning":
            assert problem.cure
            found[problem.key] = "; ".join(filter(None, (found.get(problem.key), problem.message)))
    return found


def test_a_role_that_never_moves(tmp_path):
    said = warnings(tmp_path, steps=4)
    assert said == {"training.max_train_steps": "the student never moves: it has 0 updates in 4 steps of the method dmd2"}
    assert warnings(tmp_path, steps=5) == {}


def test_a_run_without_steps_is_meant_so(tmp_path):
    assert warnings(tmp_path, steps=0) == {}


@pytest.mark.parametrize(("warmup", "warned"), [(1, False), (2, True), (100, True)])
def test_a_warm_up_without_an_end(tmp_path, warmup, warned):
    """Ten steps are two updates of the student."""
    message = f"the student never leaves its warm-up of {warmup}: it has 2 updates in this run"
    said = warnings(tmp_path, student=f"lr_warmup_steps: {warmup}")
    assert said == ({"roles.student.optimizer.lr_warmup_steps": message} if warned else {})


def test_a_warm_up_of_all_roles_is_said_where_it_is_written(tmp_path):
    said = warnings(tmp_path, training="lr_warmup_steps: 7")
    assert said == {"training.lr_warmup_steps": "the student never leaves its warm-up of 7: it has 2 updates in this run"}
    both = warnings(tmp_path, training="lr_warmup_steps: 70")["training.lr_warmup_steps"]
    assert "the critic never leaves its warm-up of 70: it has 10 updates" in both
    of_one = warnings(tmp_path, interval=5, method="update_mode: either_or", training="lr_warmup_steps: 8")
    assert "the critic never leaves its warm-up of 8: it has 8 updates" in of_one["training.lr_warmup_steps"]


@pytest.mark.parametrize(("schedule", "setting"), [("cosine_with_restarts", "lr_num_cycles"), ("polynomial", "lr_power")])
def test_a_schedule_that_does_not_decay(tmp_path, schedule, setting):
    message = f"0 makes {schedule} a constant learning rate"
    assert warnings(tmp_path, training=f"lr_scheduler: {schedule}, {setting}: 0") == {f"training.{setting}": message}
    own = f"lr_scheduler: {schedule}, {setting}: 0"
    assert warnings(tmp_path, student=own) == {f"roles.student.optimizer.{setting}": message}
    assert warnings(tmp_path, training=f"lr_scheduler: {schedule}, {setting}: 1") == {}
    assert warnings(tmp_path, training=f"lr_scheduler: cosine, {setting}: 0") == {}
