"""A run that is interrupted equals one that is not, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from fvd.cli.main import main

METHODS = ("finetune", "dmd2")


def read_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, read without fvd's own code."""
    reader = FileSystemReader(checkpoint / "state")
    metadata = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """What is logged, but for time and memory, and for tensors that do not move, looked at in a process's first updates."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(("perf/", "health/unmoved"))} for row in rows]


def assert_equal_runs(one: Path, other: Path, step: int) -> None:
    left, right = (read_tensors(run / f"checkpoints/step-{step:08d}") for run in (one, other))
    assert left.keys() == right.keys()
    assert any(".optimizers." in name for name in left)
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []
    assert read_metrics(one) == read_metrics(other)
    descriptions = [json.loads((run / f"checkpoints/step-{step:08d}/checkpoint.json").read_text()) for run in (one, other)]
    for key in ("loader", "lr_schedulers", "optimizers"):
        assert descriptions[0][key] == descriptions[1][key]


@pytest.mark.parametrize("method", METHODS)
def test_five_and_seven_steps_equal_twelve(tmp_path, write_run_file, method):
    straight = write_run_file(method, output_dir=tmp_path / "straight", name="straight.yaml")
    broken = write_run_file(method, output_dir=tmp_path / "broken", name="broken.yaml")
    assert main(["run", str(straight)]) == 0
    assert main(["run", str(broken), "--set", "training.max_train_steps=5"]) == 0
    assert [p.name for p in (tmp_path / "broken/checkpoints").iterdir()] == ["step-00000005"]
    assert main(["run", str(broken)]) == 0
    assert_equal_runs(tmp_path / "straight", tmp_path / "broken", 12)


@pytest.mark.parametrize("method", METHODS)
def test_killed_after_the_checkpoint_of_step_five(tmp_path, write_run_file, method):
    """SIGKILL, as a real process; the run is slowed down by validation so that it dies between two checkpoints."""
    every = {"training_state_checkpointing_steps": 5}
    straight = write_run_file(method, output_dir=tmp_path / "straight", name="straight.yaml", training=every)
    killed = write_run_file(method, output_dir=tmp_path / "killed", name="killed.yaml", training=every)
    slow = ["--set", "training.log_validation=true", "--set", "training.validation_steps=1"]
    process = subprocess.Popen([sys.executable, "-m", "fvd.cli.main", "run", str(killed), *slow], stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed/checkpoints/step-00000005"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/checkpoints/step-00000012").exists()
    assert main(["run", str(killed)]) == 0
    assert main(["run", str(straight)]) == 0
    assert_equal_runs(tmp_path / "straight", tmp_path / "killed", 12)


def test_a_finished_run_runs_no_further(tmp_path, write_run_file, capfd):
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", training={"max_train_steps": 2})
    assert main(["run", str(run_file)]) == 0
    before = read_metrics(tmp_path / "out")
    assert main(["run", str(run_file)]) == 0
    assert read_metrics(tmp_path / "out") == before
    assert len(list((tmp_path / "out/checkpoints").iterdir())) == 1


def test_a_second_process_is_refused_and_a_stop_signal_saves(tmp_path, write_run_file, capfd):
    """While one process runs, another on the same directory is refused and disturbs nothing; the first one, stopped,
    saves, and then the same command continues."""
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", training={"max_train_steps": 100000})
    process = subprocess.Popen([sys.executable, "-m", "fvd.cli.main", "run", str(run_file)], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "out/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.05)
    capfd.readouterr()
    assert main(["run", str(run_file), "--set", "training.max_train_steps=1"]) == 1
    assert "another process is running in" in capfd.readouterr().err
    seen = metrics.read_text().count("\n")
    while process.poll() is None and metrics.read_text().count("\n") <= seen:
        time.sleep(0.05)  # it goes on
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    (checkpoint,) = (tmp_path / "out/checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert [row["step"] for row in read_metrics(tmp_path / "out")] == list(range(1, step + 1))
    assert main(["run", str(run_file), "--set", f"training.max_train_steps={step + 1}"]) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "out")] == list(range(1, step + 2))


def test_refusal_shows_what_changed(tmp_path, write_run_file, capfd):
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", training={"max_train_steps": 1})
    assert main(["run", str(run_file)]) == 0
    capfd.readouterr()
    assert main(["run", str(run_file), "--set", "training.learning_rate=0.5", "--set", "training.max_train_steps=2"]) == 1
    stderr = capfd.readouterr().err
    assert "training.learning_rate: 0.001 -> 0.5" in stderr
    assert "max_train_steps" not in stderr
    other = write_run_file("dmd2", output_dir=tmp_path / "out", name="other.yaml")
    assert main(["run", str(other)]) == 1
    assert "recipe.method: 'finetune' -> 'dmd2'" in capfd.readouterr().err
    assert main(["run", str(run_file), "--resume", "never"]) == 1
    assert "already holds a run" in capfd.readouterr().err
    assert len(read_metrics(tmp_path / "out")) == 1


def test_foreign_output_directory_is_refused_untouched(tmp_path, write_run_file, capfd):
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("years of work", encoding="utf-8")
    assert main(["run", str(write_run_file("finetune", output_dir=foreign))]) == 1
    assert "holds no fvd run" in capfd.readouterr().err
    assert [path.name for path in foreign.iterdir()] == ["chapter.txt"]


def test_resume_from_a_path_branches_off(tmp_path, write_run_file):
    run_file = write_run_file("finetune", output_dir=tmp_path / "a", training={"max_train_steps": 2})
    assert main(["run", str(run_file)]) == 0
    checkpoint = tmp_path / "a/checkpoints/step-00000002"
    branch = write_run_file("finetune", output_dir=tmp_path / "b", name="b.yaml", training={"max_train_steps": 3})
    assert main(["run", str(branch), "--resume", str(checkpoint)]) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "b")] == [3]
    assert main(["run", str(branch), "--resume", str(tmp_path / "nowhere")]) == 1


def test_an_older_checkpoint_is_refused_where_newer_ones_are(tmp_path, write_run_file, capfd):
    every = {"max_train_steps": 3, "training_state_checkpointing_steps": 1}
    run_file = write_run_file("finetune", output_dir=tmp_path / "a", training=every)
    assert main(["run", str(run_file)]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    older = tmp_path / "a/checkpoints/step-00000001"
    capfd.readouterr()
    assert main(["run", str(run_file), "--resume", str(older)]) == 1
    assert "holds newer checkpoints (step 3)" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before
    branch = ["--set", f"training.output_dir={tmp_path / 'b'}"]
    assert main(["run", str(run_file), "--resume", str(older), *branch]) == 0
    assert_equal_runs_but_for_the_past(tmp_path / "a", tmp_path / "b", 3)


def assert_equal_runs_but_for_the_past(whole: Path, branch: Path, step: int) -> None:
    """What was branched off is what would have come."""
    left, right = (read_tensors(run / f"checkpoints/step-{step:08d}") for run in (whole, branch))
    assert all(torch.equal(left[name], right[name]) for name in left)
    rows = read_metrics(branch)
    assert rows == read_metrics(whole)[-len(rows) :]
    assert [row["step"] for row in rows] == [2, 3]


def test_the_last_videos_are_made_up_for(tmp_path, write_run_file):
    """A run that was killed between its last checkpoint and its last validation still makes those videos."""
    training = {"max_train_steps": 2, "log_validation": True}
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", training=training)
    assert main(["run", str(run_file)]) == 0
    before = read_metrics(tmp_path / "out")
    shutil.rmtree(tmp_path / "out/validation/step-00000002")
    assert main(["run", str(run_file)]) == 0
    assert list((tmp_path / "out/validation/step-00000002").glob("*.mp4"))
    assert read_metrics(tmp_path / "out") == before
