"""A checkpoint continued in a new output directory with another run file: what is the checkpoint's, and what the run file's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fvd.cli.main import main
from fvd.config.load import load_run_file
from fvd.launch import launch
from fvd.runtime import Runtime, build_runtime, plan_run
from fvd.testing.toy.method import ToyMethod

STEPS = 4
ADAM = {"learning_rate": 1e-3, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1, "lr_scheduler": "cosine"}


def write_run_file(folder: Path, output: str, *, roles: dict[str, Any] | None = None, **training: object) -> Path:
    document = {
        "recipe": {"family": "toy", "method": "toy"},
        "roles": {"student": {"path": "random", "optimizer": ADAM, **(roles or {})}},
        "training": {"output_dir": str(folder / output), "max_train_steps": STEPS, "train_batch_size": 8, **training},
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """Of a run of the toy, after its last step."""
    assert main(["run", str(write_run_file(tmp_path, "first"))]) == 0
    return tmp_path / f"first/checkpoints/step-{STEPS:08d}"


def restored(run_file: Path, resume: str) -> Runtime:
    runtime = build_runtime(plan_run(load_run_file(run_file), resume=resume))
    runtime.restore()
    return runtime


def optimizer_of(runtime: Runtime) -> tuple[dict[str, Any], dict[Any, Any]]:
    optimizer = runtime.roles["student"].optimizers["main"]
    return {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}, optimizer.state_dict()[
        "state"
    ]


def rates(run_dir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row["lr/student"] for row in rows if "lr/student" in row}


def equal(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[index][key], other[index][key]) for index in one for key in one[index])


OTHER = {"learning_rate": 3e-4, "betas": [0.5, 0.9], "eps": 1e-5, "weight_decay": 0.02}


def test_the_run_files_settings_take_effect_and_the_moments_stay(tmp_path, checkpoint):
    _, moments = optimizer_of(restored(tmp_path / "first.yaml", "auto"))
    assert float(moments[0]["step"]) == STEPS
    other = {**OTHER, "lr_scheduler": "linear", "lr_warmup_steps": 10}
    branch = write_run_file(tmp_path, "branch", roles={"optimizer": other}, max_train_steps=30)
    runtime = restored(branch, str(checkpoint))
    group, kept = optimizer_of(runtime)
    assert equal(kept, moments)
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.9), 1e-5, 0.02)
    assert group["initial_lr"] == 3e-4
    assert group["lr"] == 3e-4 * (STEPS + 1) / 11  # in the warm-up: it had ended, in the run before
    schedule = runtime.roles["student"].lr_schedulers["main"]
    assert (schedule.base_lrs, schedule.last_epoch) == ([3e-4], STEPS)
    assert runtime.roles["student"].updates == STEPS

    assert main(["run", str(branch), "--resume", str(checkpoint)]) == 0
    warmup = {step: 3e-4 * step / 11 for step in range(STEPS + 1, 11)}
    decay = {step: 3e-4 * (1 - (step - 11) / 20) for step in range(11, 31)}
    assert rates(tmp_path / "branch") == pytest.approx(warmup | decay)


def test_a_longer_schedule_holds_from_the_first_update(tmp_path, checkpoint):
    """Cosine over 4 updates has come to 0 at its end; over 8 it is then at one half."""
    branch = write_run_file(tmp_path, "branch", max_train_steps=2 * STEPS)
    group, _ = optimizer_of(restored(branch, str(checkpoint)))
    assert group["lr"] == pytest.approx(0.5e-3)


def test_a_schedule_ends_with_the_last_update_to_come(tmp_path, checkpoint, monkeypatch):
    """The role made 4 updates in 4 steps, and makes 2 in the next 8. A run that had always moved it so rarely would make 3 in
    all, and its schedule would have ended."""
    every_fourth = lambda self, iteration: ["student"] if iteration % 4 == 0 else []  # noqa: E731
    monkeypatch.setattr(ToyMethod, "roles_to_update", every_fourth)
    branch = write_run_file(tmp_path, "branch", roles={"optimizer": {**ADAM, "lr_scheduler": "linear"}}, max_train_steps=12)
    assert main(["run", str(branch), "--resume", str(checkpoint)]) == 0
    assert rates(tmp_path / "branch") == pytest.approx({8: 1e-3 * 2 / 6, 12: 1e-3 / 6})


def test_a_branch_with_the_same_run_file_is_what_would_have_come(tmp_path):
    every = {"training_state_checkpointing_steps": 2}
    assert main(["run", str(write_run_file(tmp_path, "first", **every))]) == 0
    branch = write_run_file(tmp_path, "branch", **every, dataloader_num_workers=0)
    assert main(["run", str(branch), "--resume", str(tmp_path / "first/checkpoints/step-00000002")]) == 0
    one, other = (restored(tmp_path / f"{name}.yaml", "auto") for name in ("first", "branch"))
    assert optimizer_of(one)[0] == optimizer_of(other)[0]
    assert equal(optimizer_of(one)[1], optimizer_of(other)[1])
    weights = [list(runtime.roles["student"].modules["transformer"].parameters()) for runtime in (one, other)]
    assert all(torch.equal(left, right) for left, right in zip(*weights, strict=True))
    descriptions = [
        json.loads((tmp_path / f"{name}/checkpoints/step-00000004/checkpoint.json").read_text()) for name in ("first", "branch")
    ]
    for key in ("lr_schedulers", "updates", "loader"):
        assert descriptions[0][key] == descriptions[1][key]


def test_what_changed_is_listed_in_the_log(tmp_path, checkpoint):
    branch = write_run_file(
        tmp_path, "branch", roles={"optimizer": {**ADAM, **OTHER}, "ema": {"decay": 0.9}}, max_train_steps=6, train_batch_size=4
    )
    launch(load_run_file(branch), resume=str(checkpoint))
    log = (tmp_path / "branch/logs/fvd.log").read_text(encoding="utf-8")
    assert "a branch. What changed:" in log
    assert "    roles.student.optimizer.learning_rate: 0.001 -> 0.0003\n" in log
    assert "    roles.student.ema.decay: None -> 0.9\n" in log
    assert "    training.train_batch_size: 8 -> 4\n" in log
    assert "    training.max_train_steps: 4 -> 6\n" in log
    assert "output_dir" not in log.split("What changed:")[1].split("\n20")[0]
    assert "begin anew" not in log  # the position counts samples


@pytest.mark.parametrize("other", [{"name": "RMSprop"}, {"arguments": {"amsgrad": True}}])
def test_another_optimizer_begins_without_the_old_ones_state(tmp_path, checkpoint, other):
    branch = write_run_file(tmp_path, "branch", roles={"optimizer": {"learning_rate": 1e-3, **other}}, max_train_steps=6)
    assert optimizer_of(restored(branch, str(checkpoint)))[1] == {}
    launch(load_run_file(branch), resume=str(checkpoint))
    log = (tmp_path / "branch/logs/fvd.log").read_text(encoding="utf-8")
    assert "student has another optimizer than in the checkpoint" in log


def test_the_data_begin_anew_in_another_order(tmp_path, checkpoint, capsys):
    kept = restored(write_run_file(tmp_path, "other-size", train_batch_size=3, max_train_steps=9), str(checkpoint))
    assert kept.loader.state_dict()["position"] == STEPS * 8
    launch(load_run_file(write_run_file(tmp_path, "branch", seed=5, max_train_steps=9)), resume=str(checkpoint))
    log = (tmp_path / "branch/logs/fvd.log").read_text(encoding="utf-8")
    assert "the data begin anew: training.seed changed" in log
    description = json.loads((tmp_path / "branch/checkpoints/step-00000009/checkpoint.json").read_text())
    assert description["loader"]["position"] == (9 - STEPS) * 8


def test_data_of_another_layout_begin_anew(tmp_path, checkpoint):
    description = json.loads((checkpoint / "checkpoint.json").read_text())
    description["loader"]["data"] = "another"
    (checkpoint / "checkpoint.json").write_text(json.dumps(description))
    launch(load_run_file(write_run_file(tmp_path, "branch", max_train_steps=5)), resume=str(checkpoint))
    log = (tmp_path / "branch/logs/fvd.log").read_text(encoding="utf-8")
    assert "the data begin anew: they are not those that the checkpoint was written with" in log


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("recipe", "family", "toy_noise"), ("roles", "student", {"path": "analytic", "trainable": True})],
)
def test_what_the_weights_do_not_fit_is_refused(tmp_path, checkpoint, capsys, section, key, value):
    path = write_run_file(tmp_path, "branch", learning_rate=0.5)
    document = yaml.safe_load(path.read_text())
    document[section] = {**document[section], key: value}
    path.write_text(yaml.safe_dump(document))
    capsys.readouterr()
    assert main(["run", str(path), "--resume", str(checkpoint)]) == 1
    stderr = capsys.readouterr().err
    assert "do not fit this run file" in stderr
    assert f"{section}.{key}" in stderr
    assert "learning_rate" not in stderr
    assert not (tmp_path / "branch").exists()


def test_in_its_own_directory_a_changed_run_is_refused_and_the_way_out_is_named(tmp_path, checkpoint, capsys):
    capsys.readouterr()
    changed = ["--set", "roles.student.optimizer.learning_rate=0.5", "--set", "training.max_train_steps=9"]
    for resume in ([], ["--resume", str(checkpoint)]):
        assert main(["run", str(tmp_path / "first.yaml"), *changed, *resume]) == 1
        assert f"a new training.output_dir, and --resume {checkpoint}" in " ".join(capsys.readouterr().err.split())
    other = ["--set", f"training.output_dir={tmp_path / 'other'}"]
    assert main(["run", str(tmp_path / "first.yaml"), *changed, *other, "--resume", str(checkpoint)]) == 0
    # From then on the branch is a run as any other.
    assert main(["run", str(tmp_path / "first.yaml"), *changed, *other]) == 0
    assert main(["run", str(tmp_path / "first.yaml"), *other, "--set", "training.max_train_steps=12"]) == 1


def test_by_the_run_file_it_is_a_branch_too(tmp_path, checkpoint):
    branch = write_run_file(
        tmp_path, "branch", roles={"optimizer": {**ADAM, **OTHER}}, max_train_steps=6, resume_from_checkpoint=str(checkpoint)
    )
    assert main(["run", str(branch)]) == 0
    assert sorted(rates(tmp_path / "branch")) == [5, 6]


def test_steps_of_another_branch_are_not_overwritten(tmp_path, checkpoint, capsys):
    """It was killed before its first checkpoint: the same branch begins again, another one is a mistake."""
    branch = write_run_file(tmp_path, "branch", max_train_steps=6)
    launch(load_run_file(branch), resume=str(checkpoint))
    (tmp_path / "branch/checkpoints/step-00000006").rename(tmp_path / "gone")
    capsys.readouterr()
    set_rate = ["--set", "roles.student.optimizer.learning_rate=0.5"]
    assert main(["run", str(branch), "--resume", str(checkpoint), *set_rate]) == 1
    assert "no checkpoint yet" in capsys.readouterr().err
    assert main(["run", str(branch), "--resume", str(checkpoint)]) == 0
