"""The adversarial branch in whole runs: from a run file, counted, saved and continued, and refused where it cannot be."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from fvd.cli.main import main
from fvd.testing.steps import train_step
from fvd.testing.toy.workbench import toy_batch, toy_family, toy_method
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.method import DMD2Method

ROLES = {"student": {"path": "random"}, "teacher": {"path": "random:3"}, "critic": {"path": "random"}, "discriminator": {}}


def write(tmp_path, *, steps: int = 4, out: str = "out", roles=ROLES, **method_config) -> str:
    training = {"output_dir": str(tmp_path / out), "max_train_steps": steps, "train_batch_size": 4, "learning_rate": 1e-3}
    document = {
        "recipe": {"family": "toy", "method": "dmd2"},
        "roles": roles,
        "training": training,
        "method_config": {"generator_update_interval": 2, **method_config},
    }
    path = tmp_path / f"{out}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def rows(tmp_path, out: str = "out") -> list[dict[str, float]]:
    return [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "gan",
    [
        {},
        {"feature_source": "critic", "train_feature_source": True, "timestep": "uniform", "real_timestep": "own"},
        {"r1_weight": 0.1},
        {"r1_weight": 0.1, "r1": "exact"},
        {"weight_generator": 0.0},
    ],
    ids=str,
)
def test_a_run_with_a_discriminator_makes_the_passes_that_are_expected(tmp_path, capfd, gan):
    assert main(["run", write(tmp_path, dmd_denoising_steps=[1000], gan=gan)]) == 0
    said = capfd.readouterr().err + capfd.readouterr().out
    metrics = rows(tmp_path)
    assert [("train/student_loss" in row, "train/discriminator_loss" in row) for row in metrics] == [
        (False, True),
        (True, True),
    ] * 2
    config = DMD2Config(generator_update_interval=2, dmd_denoising_steps=[1000], gan=gan)
    method_run = toy_method(DMD2Method, config, {"student": True, "teacher": False, "critic": True}).run
    run = method_run.model_copy(update={"roles": {**method_run.roles, "discriminator": method_run.roles["critic"]}})
    for role, expected in config.expected_passes(run).items():
        for kind in ("forwards", "backwards"):
            counted = sum(row[f"passes/{role}_{kind}"] for row in metrics) / len(metrics)
            assert counted == pytest.approx(getattr(expected, kind)), (role, kind, said)


def test_a_run_with_a_discriminator_in_two_halves_is_a_straight_one(tmp_path):
    assert main(["run", write(tmp_path, steps=4, out="straight")]) == 0
    half = write(tmp_path, steps=2, out="halves")
    assert main(["run", half]) == 0
    assert main(["run", half, "--set", "training.max_train_steps=4"]) == 0
    straight, halves = (
        {key: value for key, value in rows(tmp_path, out)[-1].items() if key.startswith(("train/", "grad_norm/"))}
        for out in ("straight", "halves")
    )
    assert straight == halves
    assert "train/discriminator_loss" in straight


def test_a_teacher_without_hidden_states_is_refused_before_the_first_step(tmp_path, capsys):
    path = write(tmp_path, roles={**ROLES, "teacher": {"path": "analytic"}})
    assert main(["run", path]) == 1
    said = capsys.readouterr().err
    assert "the role 'teacher' is the exact denoiser, a formula without hidden states" in said
    assert "method_config.gan.feature_source: critic" in said
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_without_the_role_nothing_is_drawn_or_computed_for_it():
    """Its knobs change no number of a run that does not name it."""
    family = toy_family()
    logged = []
    for gan in ({}, {"feature_source": "critic", "weight_generator": 5.0, "timestep": "uniform"}):
        config = DMD2Config(generator_update_interval=1, gan=gan)
        method = toy_method(DMD2Method, config, {"student": True, "teacher": False, "critic": True}, family=family)
        assert method.gan is None
        logged.append(train_step(method, toy_batch(family, 8), 1))
    assert logged[0] == logged[1]


def test_text_is_enough_without_a_discriminator_and_not_with_one(tmp_path):
    config = DMD2Config()
    run = toy_method(DMD2Method, config, {"student": True, "teacher": False, "critic": True}).run
    assert DMD2Method.latents_source(run) == "zeros"
    with_one = run.model_copy(update={"roles": {**run.roles, "discriminator": run.roles["critic"]}})
    assert DMD2Method.latents_source(with_one) == "data"


def test_the_discriminator_is_neither_sampled_nor_exported(tmp_path, capsys):
    assert main(["run", write(tmp_path, steps=1)]) == 0
    capsys.readouterr()
    for command in (["sample", "--role", "discriminator", "--prompt", "mode 1", "--out", str(tmp_path / "x.mp4")],):
        assert main([command[0], str(tmp_path / "out"), *command[1:]]) != 0
        assert "discriminator" in capsys.readouterr().err
    assert torch.is_grad_enabled()
