"""A stop signal during a validation: it is left between two videos or batches, and made when the run goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fvd.cli.main import main
from fvd.validation import video
from fvd.validation.held_out import HeldOutLoss

VIDEOS = [f"{index:03d}_ode_2_steps.mp4" for index in range(4)]


@pytest.fixture
def run(tmp_path) -> Callable[[], int]:
    """The same command each time; validates at 0, 2 and 4, four videos and three batches of held-out samples each."""
    (tmp_path / "prompts.txt").write_text("".join(f"mode {index}\n" for index in range(4)), encoding="utf-8")
    document = {
        "recipe": {"family": "toy", "method": "finetune"},
        "roles": {"student": {"path": "random"}},
        "training": {
            "output_dir": str(tmp_path / "out"),
            "max_train_steps": 4,
            "train_batch_size": 8,
            "learning_rate": 1e-3,
            "training_state_checkpointing_steps": 0,
            "validation_steps": 2,
            "validation_split": 0.2,
            "validation_samples": 24,
            "log_validation": True,
            "validation_dataset_file": str(tmp_path / "prompts.txt"),
            "validation_sampling_steps": 2,
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return lambda: main(["run", str(tmp_path / "run.yaml")])


def stops_at_call(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int) -> list[int]:
    """A real signal, to this process, in the call of that number; the numbers of the calls."""
    original, calls = vars(owner)[name], []

    def stopping(*args: object, **kwargs: object) -> object:
        calls.append(len(calls) + 1)
        if calls[-1] == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, stopping)
    return calls


def validated(out: Path) -> dict[int, list[str]]:
    folders = sorted((out / "validation").iterdir()) if (out / "validation").exists() else []
    return {int(folder.name.removeprefix("step-")): sorted(path.name for path in folder.glob("*.mp4")) for folder in folders}


def held_out_steps(out: Path) -> list[int]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["step"] for row in rows if "validation/loss" in row]


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir()) if (out / "checkpoints").exists() else []


@pytest.mark.parametrize(
    ("during", "saved", "done"),
    [(0, [], []), (2, ["step-00000002"], [0]), (4, ["step-00000004"], [0, 2])],
)
@pytest.mark.parametrize("part", ["videos", "held-out loss"])
def test_it_is_left_and_made_again(run, monkeypatch, tmp_path, part, during, saved, done):
    out, before = tmp_path / "out", len(done)
    with monkeypatch.context() as patch:
        if part == "videos":
            calls = stops_at_call(patch, video, "write_video", 4 * before + 2)
            expected = 4 * before + 2  # and no third video
        else:
            calls = stops_at_call(patch, HeldOutLoss, "_noise", 15 * before + 6)
            expected = 15 * before + 10  # the second batch to its end, in its five bins
        assert run() == 128 + signal.SIGTERM
        assert len(calls) == expected
    assert checkpoints(out) == saved
    assert validated(out) == dict.fromkeys(done, VIDEOS)
    assert held_out_steps(out) == done  # all of a validation is logged, or nothing
    assert run() == 0
    assert validated(out) == dict.fromkeys((0, 2, 4), VIDEOS)
    assert held_out_steps(out) == [0, 2, 4]
    assert checkpoints(out)[-1] == "step-00000004"
