"""What a run file says of validation in vain, found without torch."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from fvd.cli.main import main
from fvd.config.load import load_run_file
from fvd.errors import Problem

pytest.importorskip("fvd_dmd2")
pytest.importorskip("fvd_finetune")


def problems(
    folder: Path, method: str, *training: str, family: str = "toy", student: str = "", critic: str = ""
) -> list[Problem]:
    others = f", teacher: {{path: random}}, critic: {{path: random{critic}}}" if method == "dmd2" else ""
    roles = f"{{student: {{path: random{student}}}{others}}}"
    lines = [f"recipe: {{family: {family}, method: {method}}}", f"roles: {roles}", "training:", "  output_dir: out"]
    lines += [f"  {line}" for line in ("max_train_steps: 10", *training)]
    path = folder / "run.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [it for it in load_run_file(path).problems if it.key.startswith("training.")]


# --- a loss on what is held out ------------------------------------------------------------------------------------------
def test_a_method_without_a_held_out_loss_holds_nothing_out(tmp_path):
    (problem,) = problems(tmp_path, "dmd2", "validation_split: 0.1")
    assert (problem.key, problem.severity, problem.line, problem.cure) == (
        "training.validation_split",
        "error",
        6,
        "Remove it.",
    )
    assert problem.message == "the method dmd2 has no loss to compute on held-out samples"


def test_nor_data_of_its_own(tmp_path):
    (problem,) = [it for it in problems(tmp_path, "dmd2", "validation_data_path: some/folder") if it.severity == "error"]
    assert (problem.key, problem.cure) == ("training.validation_data_path", "Remove it.")


def test_a_method_that_has_one_may(tmp_path):
    assert problems(tmp_path, "finetune", "validation_split: 0.1", "validation_samples: 7") == []


@pytest.mark.parametrize(("said", "has"), [("held_out_loss=True", False), ("", True)])
def test_descriptor_and_class_say_the_same_of_the_held_out_loss(tmp_path, capsys, said, has):
    code = f"""
        import fvd
        from fvd.testing.toy.method import ToyMethod

        @fvd.hookimpl
        def fvd_methods():
            needs = {{"prepare_batch", "add_noise", "training_target", "shift_and_clamp_timestep", "num_train_timesteps"}}
            roles = {{"student": fvd.RoleNeeds(trainable=True, needs={{"predict"}})}}
            return [fvd.MethodSpec(name="says", target="says:Says", roles=roles, needs=needs, {said})]

        class Says(ToyMethod):
            {"def held_out_loss(self, batch, t, noise): return t" if has else "pass"}
    """
    (tmp_path / "says.py").write_text(textwrap.dedent(code), encoding="utf-8")
    path = tmp_path / "run.yaml"
    training = f"training: {{output_dir: {tmp_path / 'out'}, max_train_steps: 1}}"
    path.write_text(f"recipe: {{family: toy, method: says}}\nroles: {{student: {{path: random}}}}\n{training}\n")
    assert main(["run", str(path), "--plugin", str(tmp_path / "says.py")]) == 1
    words = f"it has {'a' if has else 'no'} held_out_loss, and its descriptor says held_out_loss={not has}"
    assert words in capsys.readouterr().err


# --- where it is computed --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("trained_on", "held_out", "overlaps"),
    [
        ("clips", "clips", True),
        ("clips", "./other/../clips", True),
        ("clips", "clips/half", True),
        ("clips/half", "clips", True),
        ("clips:2,other", "other", True),
        ("clips", "link", True),
        ("clips", "clips2", False),
        ("clips:0,other", "clips", False),
    ],
)
def test_what_is_trained_on_is_not_held_out(tmp_path, monkeypatch, trained_on, held_out, overlaps):
    pytest.importorskip("fvd_wan")
    monkeypatch.chdir(tmp_path)
    for folder in ("clips/half", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "clips")
    training = (f"data_path: {trained_on}", f"validation_data_path: {held_out}")
    errors = [it for it in problems(tmp_path, "finetune", *training, family="wan") if it.severity == "error"]
    assert [it.key for it in errors] == ["training.validation_data_path"] * overlaps
    assert all("trained on" in it.message and it.line == 7 for it in errors)


def test_a_held_out_folder_that_is_not_there_is_named_by_its_key(tmp_path, prepared_clips, tiny_wan, capsys):
    path = tmp_path / "run.yaml"
    training = (
        f"{{output_dir: {tmp_path / 'out'}, max_train_steps: 1, data_path: {prepared_clips}, validation_data_path: not/here}}"
    )
    roles = f"{{student: {{path: {tiny_wan}}}}}"
    path.write_text(f"recipe: {{family: wan, method: finetune}}\nroles: {roles}\ntraining: {training}\n", encoding="utf-8")
    assert main(["run", str(path)]) == 1
    said = capsys.readouterr().err
    assert "training.validation_data_path: data folder not/here does not exist" in said
    assert "training.data_path" not in said


# --- averages -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("student", "critic", "severity"),
    [
        (", ema: false", "", "error"),
        (", ema: false", ", ema: true", "warning"),
        ("", "", None),
        (", ema: {decay: 0.5}", "", None),
    ],
)
def test_averages_that_nobody_keeps_are_not_shown(tmp_path, student, critic, severity):
    (tmp_path / "prompts.txt").write_text("a\n", encoding="utf-8")
    training = ("validation_weights: ema", "log_validation: true", f"validation_dataset_file: {tmp_path / 'prompts.txt'}")
    found = problems(tmp_path, "dmd2", *training, student=student, critic=critic)
    assert [(it.key, it.severity) for it in found] == ([("training.validation_weights", severity)] if severity else [])
    assert all("no average is kept of the student" in it.message and "roles.student.ema" in it.cure for it in found)


def test_of_the_held_out_loss_too(tmp_path):
    (problem,) = problems(tmp_path, "finetune", "validation_split: 0.1", "validation_weights: ema")
    assert (problem.key, problem.severity) == ("training.validation_weights", "error")
    assert problems(tmp_path, "finetune", "validation_split: 0.1", "validation_weights: ema", student=", ema: true") == []


# --- in vain ---------------------------------------------------------------------------------------------------------------
def test_keys_that_do_nothing_are_noted(tmp_path):
    given = ("validation_weights: ema", "validation_fps: 8", "validation_samples: 7", "validation_steps: 5")
    found = {it.key.removeprefix("training."): (it.severity, it.message) for it in problems(tmp_path, "finetune", *given)}
    assert found == {
        "validation_weights": ("note", "has no effect: nothing is validated"),
        "validation_steps": ("note", "has no effect: nothing is validated"),
        "validation_fps": ("note", "has no effect: log_validation is false"),
        "validation_samples": ("note", "has no effect: no samples are held out"),
    }


def test_keys_that_say_what_is_so_anyway_are_not(tmp_path):
    assert problems(tmp_path, "finetune", "validation_weights: both", "validation_steps: 100") == []
