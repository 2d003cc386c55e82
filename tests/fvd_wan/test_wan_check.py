"""`fvd check` on run files with Wan roles, and the lightness of what it imports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

import fvd
from fvd.config.check import CheckContext
from fvd.config.models import Recipe
from fvd_wan.config import WAN_NEGATIVE_PROMPT, WanConfig
from fvd_wan.plugin import fvd_check_config, fvd_families

WAN = fvd_families()[0]
METHOD = fvd.MethodSpec(name="m", target="m:M", config="m:C", roles={"student": fvd.RoleNeeds(trainable=True)})


def check(roles, *, pipeline=None, **training):
    run = fvd.RunConfig(
        recipe=Recipe(family="wan", method="m"),
        roles={name: fvd.RoleConfig(path=str(path)) for name, path in roles.items()},
        training=fvd.TrainingConfig(output_dir="out", max_train_steps=1, data_path="data", **training),
        pipeline_config=WanConfig(**(pipeline or {})),
        method_config=fvd.MethodConfig(),
    )
    ctx = CheckContext(run=run, method=METHOD, families=dict.fromkeys(roles, WAN), locate=lambda key: ("run.yaml", None))
    return fvd_check_config(ctx)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_good_run_file_has_no_problems(tiny_path):
    sizes = {"num_height": 64, "num_width": 96, "num_frames": 9}
    assert check({"student": tiny_path, "teacher": tiny_path}, **sizes) == []
    assert check({"student": tiny_path / "transformer"}, pipeline={"components_path": str(tiny_path)}) == []


@pytest.mark.parametrize(
    ("path", "severity", "words"),
    [
        ("./nowhere", "error", "does not exist"),
        ("~/surely/not/here", "error", "does not exist"),
        ("/no/such/model", "error", "does not exist"),
        ("wan-tiny", "error", "does not exist"),
        ("models/wan-tiny", "error", "does not exist"),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "warning", "taken as a hub id"),
    ],
)
def test_paths_that_are_not_there(path, severity, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()  # so that models/wan-tiny is a local path with a slip in it
    (problem,) = check({"student": path})
    assert (problem.severity, problem.key) == (severity, "roles.student.path")
    assert words in problem.message


def test_all_problems_at_once(tiny_copy, tmp_path):
    video = shutil.copytree(tiny_copy, tmp_path / "i2v")
    edit_json(video / "transformer" / "config.json", in_channels=36)
    other = shutil.copytree(tiny_copy, tmp_path / "other")
    edit_json(other / "transformer" / "config.json", text_dim=4096)
    found = check(
        {"student": tiny_copy, "teacher": video, "critic": other, "extra": tmp_path},
        num_height=50,
        num_width=64,
        num_frames=80,
    )
    by_key = {problem.key: problem for problem in found}
    assert len(found) == len(by_key) == 5
    assert {problem.severity for problem in found} == {"error"}
    assert "image-to-video" in by_key["roles.teacher.path"].message
    assert "4096" in by_key["roles.critic.path"].message
    assert "and 32" in by_key["roles.critic.path"].message
    assert "not a model in diffusers format" in by_key["roles.extra.path"].message
    assert by_key["training.num_height"].cure == "Use 48 or 64."
    assert by_key["training.num_frames"].cure == "Use 77 or 81."


def test_a_model_without_a_vae_names_components_path(tiny_path):
    (problem,) = check({"student": tiny_path / "transformer"})
    assert "has no vae" in problem.message
    assert "components_path" in problem.cure
    (problem,) = check({"student": tiny_path}, pipeline={"components_path": "./nowhere"})
    assert problem.key == "pipeline_config.components_path"


def test_two_experts_need_a_boundary(tiny_copy):
    shutil.copytree(tiny_copy / "transformer", tiny_copy / "transformer_2")
    edit_json(tiny_copy / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"])
    (problem,) = check({"student": tiny_copy})
    assert "two transformers" in problem.message
    assert "boundary_ratio" in problem.cure
    assert check({"student": tiny_copy}, pipeline={"boundary_ratio": 0.875}) == []


@pytest.mark.parametrize("name", ["ltx", "wan"])
def test_other_families_of_whatever_name_are_not_checked(name):
    other = fvd.FamilySpec(name=name, target="ltx:F", config="ltx:C", provides={"prepare_batch"})
    run = fvd.RunConfig(
        recipe=Recipe(family=f"acme:{name}", method="m"),
        roles={"student": fvd.RoleConfig(path="/nowhere")},
        training=fvd.TrainingConfig(output_dir="out", max_train_steps=1, data_path="data", num_frames=8),
        pipeline_config=fvd.PipelineConfig(),
        method_config=fvd.MethodConfig(),
    )
    ctx = CheckContext(run=run, method=METHOD, families={"student": other}, locate=lambda key: ("", None))
    assert fvd_check_config(ctx) == []


def test_config_refuses_what_it_does_not_know():
    assert WanConfig().flow_shift == 3.0
    assert WanConfig().negative_prompt == WAN_NEGATIVE_PROMPT
    for wrong in (
        {"ode_solver": "heun"},
        {"flow_shift": 0},
        {"flow_shfit": 3},
        {"boundary_ratio": 1.5},
        {"max_text_tokens": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            WanConfig(**wrong)


def test_declared_primitives_are_implemented():
    from fvd_wan.adapter import WanAdapter

    unchanged = {name for name in WAN.provides if name in vars(fvd.Adapter)}
    inherited = {name for name in unchanged if getattr(WanAdapter, name) is vars(fvd.Adapter)[name]}
    assert inherited == set()


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        (
            "import fvd_wan.plugin as p; p.fvd_families(); p.fvd_commands()",
            {"torch", "diffusers", "transformers", "pydantic", "numpy"},
        ),
        (
            "import argparse, fvd_wan.cli as c; c.configure(argparse.ArgumentParser())",
            {"torch", "diffusers", "transformers", "pydantic"},
        ),
        ("import fvd_wan.config, fvd_wan.check, fvd_wan.folders", {"torch", "diffusers", "transformers", "numpy"}),
    ],
)
def test_light_modules_stay_light(code, forbidden):
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert forbidden.isdisjoint(loaded)
