"""The toy families through the command line, as any family: run, resume, sample, export; and run files without data."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fvd.cli.main import main
from fvd.config.example import example_run_file
from fvd.config.load import LoadedRun, load_run_file
from fvd.errors import FvdError
from fvd.plugins import load_plugins
from fvd.testing.toy.mixture import energy_distance
from fvd.testing.toy.workbench import toy_family, toy_run_samples

FAMILIES = pytest.mark.parametrize("family", ["toy", "toy_noise"])
SHORT = {"max_train_steps": 6, "train_batch_size": 16, "training_state_checkpointing_steps": 3, "training_cfg_rate": 0.25}


def write_run_file(folder: Path, output: str, *, family: str = "toy", **training: object) -> Path:
    document: dict[str, Any] = {
        "recipe": {"family": family, "method": "toy"},
        "roles": {"student": {"path": "random"}},
        "training": {"output_dir": str(folder / output), **SHORT, **training},
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def metrics(run_dir: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def load(folder: Path, text: str) -> LoadedRun:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_run_file(path)


@FAMILIES
def test_run_sample_export_and_run_on(family, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("mode 2\na red square\n", encoding="utf-8")
    validation = {"log_validation": True, "validation_dataset_file": str(prompts), "validation_sampling_steps": 2}
    run_file = write_run_file(tmp_path, "run", family=family, **validation)
    assert main(["run", str(run_file)]) == 0
    assert len(list((tmp_path / "run" / "validation" / "step-00000006").glob("*.mp4"))) == 2
    lock = json.loads((tmp_path / "run" / "run.lock.json").read_text(encoding="utf-8"))
    used = {name for plugin in lock["plugins"] for name in plugin["components"]}
    assert {f"family:{family}", "method:toy", f"dataset_kind:{family}"} <= used
    assert main(["sample", str(tmp_path / "run"), "--prompt", "mode 3", "--steps", "2", "--out", str(tmp_path / "x.mp4")]) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "exported")]) == 0
    exported = write_run_file(tmp_path, "second", family=family)
    assert main(["run", str(exported), "--set", f"roles.student.path={tmp_path / 'exported'}"]) == 0
    assert main(["export", str(tmp_path / "run"), "--to", "diffusers", "--out", str(tmp_path / "no")]) == 1
    assert "It exports to: toy." in capsys.readouterr().err


@FAMILIES
def test_resumed_is_as_straight(family, tmp_path):
    straight, parts = (write_run_file(tmp_path, name, family=family) for name in ("straight", "parts"))
    assert main(["run", str(straight)]) == 0
    assert main(["run", str(parts), "--set", "training.max_train_steps=3"]) == 0
    assert main(["run", str(parts)]) == 0
    assert [step for step, _ in metrics(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "straight")


def test_accumulated_is_as_at_once(tmp_path):
    at_once = write_run_file(tmp_path, "at-once", learning_rate=1e-3)
    assert main(["run", str(at_once)]) == 0
    accumulated = write_run_file(tmp_path, "accumulated", learning_rate=1e-3, train_batch_size=4, gradient_accumulation_steps=4)
    assert main(["run", str(accumulated)]) == 0
    for (step, one), (other_step, other) in zip(metrics(tmp_path / "at-once"), metrics(tmp_path / "accumulated"), strict=True):
        assert step == other_step
        assert one == pytest.approx(other, rel=1e-4)


def test_recomputing_changes_nothing(tmp_path):
    for name, kind in (("kept", None), ("recomputed", "full")):
        assert main(["run", str(write_run_file(tmp_path, name, enable_gradient_checkpointing_type=kind))]) == 0
    assert metrics(tmp_path / "kept") == metrics(tmp_path / "recomputed")


def test_the_run_file_that_core_writes_runs(tmp_path, monkeypatch):
    """The example of family and method, from their descriptors, as `fvd plugins example` prints it."""
    monkeypatch.chdir(tmp_path)
    text = example_run_file(load_plugins(request=("toy",)), "toy", "toy")
    (tmp_path / "toy.yaml").write_text(text, encoding="utf-8")
    assert main(["run", "toy.yaml", "--set", "training.max_train_steps=2"]) == 0


def test_the_first_rung(tmp_path, monkeypatch):
    """examples/toy.yaml with the method in one file; and without it, with the installed method."""
    examples = Path(__file__).parents[2] / "examples"
    assert len((examples / "my_method.py").read_text(encoding="utf-8").splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    short = ["--set", "training.max_train_steps=2", "--plugin", str(examples / "my_method.py")]
    assert main(["run", str(examples / "toy.yaml"), *short]) == 0
    assert main(["run", str(examples / "toy.yaml"), *short, "--set", "recipe.family=toy_noise"]) == 1  # another run's folder
    other = ["--set", "training.output_dir=noise", "--set", "recipe.family=toy_noise"]
    assert main(["run", str(examples / "toy.yaml"), *short, *other]) == 0
    installed = ["--set", "training.output_dir=installed", "--set", "recipe.method=toy", "--set", "training.max_train_steps=2"]
    assert main(["run", str(examples / "toy.yaml"), *installed]) == 0


# --- training.data_path ---
NO_DATA = """
recipe: {{family: {family}, method: {method}}}
roles: {{student: {{path: random}}}}
training: {{output_dir: out, max_train_steps: 1{more}}}
"""


def test_a_family_that_makes_its_data_needs_no_folder(tmp_path):
    assert not load(tmp_path, NO_DATA.format(family="toy", method="toy", more="")).problems
    loaded = load(tmp_path, NO_DATA.format(family="toy", method="toy", more=", data_path: some/folder"))
    (problem,) = loaded.problems
    assert (problem.key, problem.severity) == ("training.data_path", "warning")
    assert "has no effect: the family toy makes its data itself" in problem.message


def test_a_family_that_reads_folders_does(tmp_path):
    """Reported with everything else that is wrong."""
    text = NO_DATA.format(family="wan", method="finetune", more=", learning_rat: 1")
    pytest.importorskip("fvd_wan")
    pytest.importorskip("fvd_finetune")
    found = {problem.key: problem.message for problem in load(tmp_path, text).errors}
    assert found["training.data_path"] == "is required and not given"
    assert "training.learning_rat" in found


def test_data_of_another_size_are_refused_on_resuming(tmp_path, monkeypatch):
    """The layout of the data is part of a checkpoint, also where no folder holds them."""
    run_file = write_run_file(tmp_path, "run")
    assert main(["run", str(run_file), "--set", "training.max_train_steps=3"]) == 0
    monkeypatch.setattr("fvd.testing.toy.data.CHUNKS", 10)
    assert main(["run", str(run_file)]) == 1


def test_an_exported_students_weights_are_the_runs(tmp_path):
    run_file = write_run_file(tmp_path, "run")
    assert main(["run", str(run_file)]) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "exported")]) == 0
    weights = torch.load(tmp_path / "exported" / "weights.pt", weights_only=True)
    from fvd.config.models import RoleConfig

    untrained = toy_family().load_role("student", RoleConfig(path="random", trainable=True)).modules["transformer"].state_dict()
    assert weights.keys() == untrained.keys()
    assert not all(torch.equal(weights[name], untrained[name]) for name in weights)


def test_a_run_with_a_local_plugin_says_which_file_it_wants(tmp_path, monkeypatch, capsys):
    examples = Path(__file__).parents[2] / "examples"
    monkeypatch.chdir(tmp_path)
    plugin = str(examples / "my_method.py")
    assert main(["run", str(examples / "toy.yaml"), "--set", "training.max_train_steps=1", "--plugin", plugin]) == 0
    capsys.readouterr()
    assert main(["sample", "outputs/toy", "--prompt", "mode 1", "--out", "toy.mp4"]) == 1
    said = capsys.readouterr().err
    assert f"the run was made with the plugin file {plugin}" in said
    assert f"Add --plugin {plugin}" in said
    assert main(["sample", "outputs/toy", "--prompt", "mode 1", "--out", "toy.mp4", "--plugin", plugin]) == 0


# --- mistakes in a method's code ---
LOCAL_METHOD = """
import fvd
from fvd.testing.toy.method import ToyMethod


@fvd.hookimpl
def fvd_methods():
    needs = {"prepare_batch", "add_noise", "training_target", "shift_and_clamp_timestep", "num_train_timesteps"}
    roles = {"student": fvd.RoleNeeds(trainable=True, needs={"predict"})}
    return [fvd.MethodSpec(name="a_slip", target="a_slip:Slip", summary="", roles=roles, needs=needs)]


class Slip(ToyMethod):
"""


def run_local_method(folder: Path, body: str, **pipeline: object) -> int:
    (folder / "a_slip.py").write_text(LOCAL_METHOD + textwrap.indent(textwrap.dedent(body), "    "), encoding="utf-8")
    document = yaml.safe_load(write_run_file(folder, "run", max_train_steps=1).read_text(encoding="utf-8"))
    document["recipe"]["method"], document["pipeline_config"] = "a_slip", pipeline
    (folder / "run.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return main(["run", str(folder / "run.yaml"), "--plugin", str(folder / "a_slip.py")])


UNLESS_IT_IS_YOURS = "This is a mistake in the method's code; report it to its authors, unless it is yours."


@pytest.mark.parametrize("names", [("student", "teacher"), ("model",), ()])
def test_role_names_that_are_not_the_descriptors(names, tmp_path, capsys):
    """Not a role that the run file lacks: it would refuse it."""
    assert run_local_method(tmp_path, f"role_names = {names!r}") == 1
    said = capsys.readouterr().err
    assert (
        f"(a_slip.Slip) breaks its contract: its role_names {sorted(names)} are not the descriptor's roles ['student']" in said
    )
    assert UNLESS_IT_IS_YOURS in said
    assert "missing role" not in said


def test_a_misspelt_role_in_the_code(tmp_path, capsys):
    assert run_local_method(tmp_path, "def on_train_start(self):\n    self.roles['studnet']") == 1
    said = capsys.readouterr().err
    assert "the method's code asks for the role 'studnet' (did you mean 'student'?)" in said
    assert UNLESS_IT_IS_YOURS in said
    assert "run file" not in said


SAMPLES_WITH_SDE = """
@classmethod
def sampling_plan(cls, run):
    return fvd.SamplingPlan(role="student", sampler_kind="sde", sampling_steps=(2,))
"""


@pytest.mark.parametrize(("said", "warned"), [("ode", True), ("sde", False), ("fvd-core:sde", False), (None, False)])
def test_a_sampler_that_the_method_does_not_use(said, warned, tmp_path, capsys):
    assert run_local_method(tmp_path, SAMPLES_WITH_SDE, sampler_kind=said) == 0
    words = "pipeline_config.sampler_kind: ode has no effect: the method a_slip samples with sde"
    assert (words in capsys.readouterr().err) is warned
    assert (words in (tmp_path / "run" / "logs" / "fvd.log").read_text(encoding="utf-8")) is warned


# --- from a run to points ---
@FAMILIES
def test_the_points_of_a_run(family, tmp_path):
    run_file = write_run_file(
        tmp_path, "run", family=family, max_train_steps=150, train_batch_size=128, learning_rate=5e-3, lr_scheduler="cosine"
    )
    assert main(["run", str(run_file), "--set", "roles.student.path=random:1"]) == 0
    mixture = toy_family().mixture
    truth = mixture.sample(1000, torch.Generator().manual_seed(0))
    points = toy_run_samples(tmp_path / "run", 500)
    assert points.shape == (500, 2)
    assert energy_distance(points, truth) < 0.4  # 0.58 before training
    of_one_mode = toy_run_samples(tmp_path / "run", 100, prompt="mode 2")
    assert torch.cdist(of_one_mode.double().mean(dim=0, keepdim=True), mixture.means).argmin() == 2


def test_points_of_a_run_with_a_local_plugin(tmp_path):
    assert run_local_method(tmp_path, SAMPLES_WITH_SDE) == 0
    with pytest.raises(FvdError, match="the run was made with the plugin file"):
        toy_run_samples(tmp_path / "run", 4)
    assert toy_run_samples(tmp_path / "run", 4, plugin_files=[str(tmp_path / "a_slip.py")]).shape == (4, 2)
    with pytest.raises(FvdError, match="is not a run directory"):
        toy_run_samples(tmp_path / "nowhere", 4)
