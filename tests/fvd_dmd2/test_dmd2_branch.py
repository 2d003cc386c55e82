"""What the alarms advise, done: back to a checkpoint, with the critic trained more, or another discriminator weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fvd.cli.main import main
from fvd.testing.conformance.runs import read_metrics

ROLES = {
    "student": {"path": "random", "optimizer": {"learning_rate": 1e-3}},
    "teacher": {"path": "analytic"},
    "critic": {"path": "random", "optimizer": {"learning_rate": 1e-3, "lr_scheduler": "linear"}},
}


def write_run(folder: Path, output: str, steps: int, interval: int, **roles: Any) -> str:
    document = {
        "recipe": {"family": "toy", "method": "dmd2"},
        "roles": {**ROLES, **roles},
        "training": {"output_dir": str(folder / output), "max_train_steps": steps, "train_batch_size": 4},
        "method_config": {"dmd_denoising_steps": [1000, 500], "generator_update_interval": interval},
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def test_back_to_a_checkpoint_with_the_critic_trained_more(tmp_path, capsys):
    assert main(["run", write_run(tmp_path, "first", 4, interval=1)]) == 0
    checkpoint = str(tmp_path / "first/checkpoints/step-00000004")
    critic = {"path": "random", "optimizer": {"learning_rate": 5e-4, "lr_scheduler": "linear"}}
    branch = write_run(tmp_path, "branch", 8, interval=2, critic=critic)
    capsys.readouterr()
    assert main(["run", branch, "--resume", checkpoint]) == 0
    assert "    method_config.generator_update_interval: 1 -> 2\n" in capsys.readouterr().err
    rows = read_metrics(tmp_path / "branch")
    assert [row["step"] for row in rows if "train/student_loss" in row] == [6, 8]
    assert [row["lr/critic"] for row in rows] == pytest.approx([5e-4 * (1 - made / 8) for made in (4, 5, 6, 7)])
    assert [row["lr/student"] for row in rows if "lr/student" in row] == [1e-3, 1e-3]


@pytest.mark.parametrize("there", [True, False])
def test_a_discriminator_must_be_the_checkpoints(tmp_path, capsys, there):
    """Its weights are in the checkpoint, or the run that has one begins anew."""
    roles = {"teacher": {"path": "random:3"}, "discriminator": {}}
    first = write_run(tmp_path, "first", 2, interval=1, **(roles if there else {"teacher": roles["teacher"]}))
    assert main(["run", first]) == 0
    resume = ["--resume", str(tmp_path / "first/checkpoints/step-00000002")]
    branch = write_run(tmp_path, "branch", 4, interval=1, **roles)
    capsys.readouterr()
    assert main(["run", branch, *resume, "--set", "method_config.gan.weight_generator=0.01"]) == (0 if there else 1)
    stderr = capsys.readouterr().err
    assert ("roles.discriminator.path: None -> ''" in stderr) == (not there)
    assert (tmp_path / "branch").exists() == there
