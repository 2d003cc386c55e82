"""Roles that a run file may leave out, and roles that the method makes: from the descriptor to the checkpoint."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fvd
from fvd.cli.main import main
from fvd.config.example import example_run_file
from fvd.config.load import LoadedRun, load_run_file
from fvd.config.schema import run_file_schema
from fvd.plugins import PluginOptions
from fvd.plugins.fit import describe_fit, missing_primitives
from fvd.testing.conformance.runs import read_metrics, read_tensors
from fvd.testing.steps import train_step
from fvd.testing.toy.workbench import toy_batch, toy_family, toy_method

PLUGIN = """
    import fvd

    @fvd.hookimpl
    def fvd_methods():
        return [
            fvd.MethodSpec(
                name="probed",
                target="probed:Probed",
                summary="regression, and a probe that guesses the noise level from features",
                roles={
                    "student": fvd.RoleNeeds(trainable=True, needs={"predict"}),
                    "probe": fvd.RoleNeeds(
                        trainable=True, needs={"feature_widths", "features"}, optional=True, made_by_method=True
                    ),
                },
                needs={"prepare_batch", "add_noise", "training_target", "num_train_timesteps"},
            )
        ]

    def __getattr__(name):
        if name != "Probed":
            raise AttributeError(name)
        from probed_method import Probed
        return Probed
"""

METHOD = """
    import torch
    from torch import nn
    import fvd
    from fvd.rng import derive_seed


    class Probed(fvd.Method):
        role_names = ("student",)
        optional_role_names = ("probe",)

        @classmethod
        def build_roles(cls, *, run, roles, adapter, latent_shape):
            assert len(latent_shape) == 4
            [width, *_] = adapter.bind(roles["student"]).feature_widths()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed("probe", run.training.seed))
                head = nn.Linear(width, 1)
            handle = fvd.RoleHandle(name="probe", family=run.recipe.family, trainable=True, modules={"head": head})
            return [handle.apply_trainable()]

        def single_train_step(self, batch, iteration, *, rng):
            prepared = self.adapter.prepare_batch(batch, latents_source="data")
            student = self.adapter.bind(self.roles["student"])
            t, noise = self.adapter.num_train_timesteps * rng.rand(), rng.randn_like(prepared.latents)
            x_t = self.adapter.add_noise(prepared.latents, noise, t)
            error = student.predict(x_t, t, prepared.cond) - self.adapter.training_target(prepared.latents, noise, t)
            yield fvd.Loss("loss", error.square().mean(), role="student")
            if "probe" in self.roles:
                with torch.no_grad():
                    (feature,) = student.features(x_t, t, prepared.cond, layers=[0])
                guess = self.roles["probe"].modules["head"](feature.flatten(1))[:, 0]
                yield fvd.Loss("probe_loss", (guess - t / 1000).square().mean(), role="probe")
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "probed.py"
    path.write_text(textwrap.dedent(PLUGIN), encoding="utf-8")
    (tmp_path / "probed_method.py").write_text(textwrap.dedent(METHOD), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return path


@pytest.fixture
def probed(plugin) -> type[fvd.Method]:
    import probed_method

    return probed_method.Probed


def write(folder: Path, output: str, roles: dict[str, Any], **training: object) -> Path:
    document = {
        "recipe": {"family": "toy", "method": "probed"},
        "roles": roles,
        "training": {
            "output_dir": str(folder / output),
            "max_train_steps": 4,
            "train_batch_size": 8,
            "training_state_checkpointing_steps": 2,
            **training,
        },
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def load(plugin: Path, path: Path) -> LoadedRun:
    return load_run_file(path, options=PluginOptions(files=(str(plugin),)))


def errors(plugin: Path, path: Path) -> list[tuple[str, str]]:
    return [(problem.key, problem.message) for problem in load(plugin, path).errors]


WITH_PROBE: dict[str, Any] = {"student": {"path": "random"}, "probe": {}}


# --- the run file ---
def test_an_optional_role_may_be_left_out_or_named(plugin, tmp_path):
    for roles in ({"student": {"path": "random"}}, WITH_PROBE, WITH_PROBE | {"probe": None}):
        assert errors(plugin, write(tmp_path, "run", roles)) == []


def test_a_role_that_the_method_makes_has_no_path(plugin, tmp_path):
    path = write(tmp_path, "run", WITH_PROBE | {"probe": {"path": "random"}})
    [problem] = load(plugin, path).errors
    assert problem.key == "roles.probe.path"
    assert problem.message == "the role probe is made by the method probed, it has no path"


def test_other_roles_need_one(plugin, tmp_path):
    found = errors(plugin, write(tmp_path, "run", {"student": {}, "probe": {}}))
    assert found == [("roles.student.path", "is required and not given")]


def test_a_required_role_is_still_required(plugin, tmp_path):
    [(key, message)] = errors(plugin, write(tmp_path, "run", {"probe": {}}))
    assert (key, message) == ("roles", "method probed needs the role 'student'")


def test_needs_of_an_optional_role_count_where_the_file_names_it(tmp_path):
    family = fvd.FamilySpec(name="f", target="a:b", provides=fvd.TEXT_TO_VIDEO)
    method = fvd.MethodSpec(
        name="m",
        target="a:b",
        roles={
            "student": fvd.RoleNeeds(trainable=True, needs={"predict"}),
            "probe": fvd.RoleNeeds(trainable=True, needs={"features"}, optional=True, made_by_method=True),
        },
    )
    assert missing_primitives(method, family) == {}
    assert missing_primitives(method, family, ["student"]) == {}
    assert missing_primitives(method, family, ["student", "probe"]) == {"probe": {"features"}}
    assert describe_fit(method, family) == "✓ without probe"
    whole = fvd.FamilySpec(name="w", target="a:b", provides=fvd.TEXT_TO_VIDEO | fvd.FEATURE_PRIMITIVES)
    assert describe_fit(method, whole) == "✓"


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ({"trainable": False, "made_by_method": True}, "is trained"),
        ({"trainable": True, "optional": "yes"}, "optional must be True or False"),
    ],
)
def test_descriptors_that_mean_nothing_are_refused(needs, said):
    with pytest.raises((ValueError, TypeError), match=said):
        fvd.RoleNeeds(**needs)


def test_some_role_must_be_a_model_that_every_run_has():
    roles = {"student": fvd.RoleNeeds(trainable=True, optional=True)}
    with pytest.raises(ValueError, match="at least one of its roles"):
        fvd.MethodSpec(name="m", target="a:b", roles=roles)


# --- what the command line says ---
def test_example_has_it_in_a_comment_and_the_schema_does_not_require_it(plugin):
    plugins = PluginOptions(files=(str(plugin),)).load(only=None, mentioned=["toy"])
    text = example_run_file(plugins, "toy", "probed")
    assert "  # optional (trained, made by the method):  probe: {}" in text.splitlines()
    [condition] = [
        it["then"]["properties"]["roles"]
        for it in run_file_schema(plugins)["allOf"]
        if "probe" in it["then"]["properties"].get("roles", {}).get("properties", {})
    ]
    assert condition["required"] == ["student"]
    assert condition["properties"]["probe"]["description"] == "Trained. Optional. The method makes it: it has no path."


def test_show_says_what_the_role_is(plugin, capsys):
    assert main(["--plugin", str(plugin), "plugins", "show", "probed"]) == 0
    assert "probe, trained, optional, made by the method, needs feature_widths features" in capsys.readouterr().out


# --- a run ---
def losses(run_dir: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name.startswith("train/")} for row in read_metrics(run_dir)]


def run(plugin: Path, path: Path) -> int:
    return main(["run", str(path), "--plugin", str(plugin)])


def test_it_is_trained_saved_and_resumed_like_all_others(plugin, tmp_path):
    straight = write(tmp_path, "straight", WITH_PROBE)
    assert run(plugin, straight) == 0
    halves = write(tmp_path, "halves", WITH_PROBE, max_train_steps=2)
    assert run(plugin, halves) == 0
    assert run(plugin, write(tmp_path, "halves", WITH_PROBE)) == 0
    one, other = (read_tensors(tmp_path / name / "checkpoints" / "step-00000004") for name in ("straight", "halves"))
    assert any(".probe." in f".{name}" for name in one)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(tmp_path / "straight") == losses(tmp_path / "halves")
    first = read_tensors(tmp_path / "straight" / "checkpoints" / "step-00000002")
    weight = next(name for name in first if "probe" in name and name.endswith("head.weight") and "optim" not in name)
    assert not torch.equal(first[weight], one[weight])


def test_a_run_without_it_trains_the_student_alike(plugin, tmp_path):
    assert run(plugin, write(tmp_path, "with", WITH_PROBE)) == 0
    assert run(plugin, write(tmp_path, "without", {"student": {"path": "random"}})) == 0
    one, other = (read_tensors(tmp_path / name / "checkpoints" / "step-00000004") for name in ("with", "without"))
    assert {name for name in one if "probe" not in name} == set(other)
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_effective_run_file_is_a_run_file(plugin, tmp_path):
    assert run(plugin, write(tmp_path, "run", WITH_PROBE)) == 0
    document = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text(encoding="utf-8"))
    assert document["roles"]["probe"]["trainable"] is True
    assert errors(plugin, tmp_path / "run" / "run.yaml") == []


@pytest.mark.parametrize("command", [["sample", "--prompt", "mode 1"], ["export"]])
def test_it_can_neither_be_sampled_nor_exported(plugin, tmp_path, capsys, command):
    assert run(plugin, write(tmp_path, "run", WITH_PROBE)) == 0
    out = tmp_path / "out.mp4"
    name, *options = command
    status = main([name, str(tmp_path / "run"), "--role", "probe", "--out", str(out), "--plugin", str(plugin), *options])
    assert status == 1
    said = capsys.readouterr().err
    assert "the role 'probe' is made by the method probed" in said
    assert "Roles that can: student." in said
    assert not out.exists()


def test_components_come_from_the_first_role_that_has_a_path(plugin, tmp_path):
    roles = {"probe": {}, "student": {"path": "random"}}
    assert run(plugin, write(tmp_path, "run", roles)) == 0
    lock = json.loads((tmp_path / "run" / "run.lock.json").read_text(encoding="utf-8"))
    assert lock


# --- the contract ---
def test_the_workbench_makes_it_too(probed):
    family = toy_family()
    method = toy_method(probed, fvd.MethodConfig(), {"student": True}, family=family, made=["probe"])
    before = method.roles["probe"].modules["head"].weight.detach().clone()
    losses = train_step(method, toy_batch(family, 8), 1)
    assert set(losses) >= {"loss", "probe_loss"}
    assert not torch.equal(method.roles["probe"].modules["head"].weight, before)


@pytest.mark.parametrize("slip", ["other name", "frozen", "nothing"])
def test_a_method_that_makes_other_roles_than_it_says_is_at_fault(probed, slip):
    class Slip(probed):
        @classmethod
        def build_roles(cls, **arguments):
            [handle] = super().build_roles(**arguments)
            if slip == "nothing":
                return []
            handle.name = "prob" if slip == "other name" else handle.name
            handle.trainable = slip != "frozen"
            return [handle]

    with pytest.raises(fvd.PluginError, match="must make the trained roles probe, and has made"):
        toy_method(Slip, fvd.MethodConfig(), {"student": True}, made=["probe"])


def test_optional_role_names_must_be_the_descriptors(plugin, tmp_path, capsys):
    method = tmp_path / "probed_method.py"
    method.write_text(method.read_text(encoding="utf-8").replace('("probe",)', '("prob",)'), encoding="utf-8")
    assert run(plugin, write(tmp_path, "run", {"student": {"path": "random"}})) == 1
    assert "its optional_role_names ['prob'] are not the descriptor's optional roles ['probe']" in capsys.readouterr().err
