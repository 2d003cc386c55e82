"""The distributions of ``tests/thirdparty`` and those that `fvd plugins new` writes, as wheels in one fresh environment, good
and bad ones together. `nox -s thirdparty` builds the former and names their folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from clean_environment import Environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("FVD_WHEELS" not in os.environ, reason="FVD_WHEELS names no folder of wheels; run `nox -s thirdparty`"),
]

BAD = ("fvd_oldcore", "fvd_torn")
"""pip would not install the first beside this core, and need not look at the requirements of the second."""

STATES = {
    "acme_wan": ("acme-wan", "0.3.1", "ok", None),
    "cogvideox": ("fvd-cogvideox", "0.1.0", "ok", None),
    "consistency": ("fvd-consistency", "0.1.0", "ok", None),
    "core": ("fvd-core", "0.1.0", "ok", None),
    "csv": ("fvd-csv", "0.1.0", "ok", None),
    "dmd2": ("fvd-dmd2", "0.1.0", "ok", None),
    "finetune": ("fvd-finetune", "0.1.0", "ok", None),
    "heun": ("fvd-heun", "0.1.0", "ok", None),
    "ltx": ("fvd-ltx", "0.1.0", "ok", None),
    "oldcore": ("fvd-oldcore", "0.0.9", "incompatible", "P02"),
    "slow": ("fvd-slow", "0.1.0", "slow", "W01"),
    "strip": ("fvd-strip", "0.1.0", "ok", None),
    "torn": ("fvd-torn", "0.1.0", "broken", "P03"),
    "wan": ("fvd-wan", "0.1.0", "ok", None),
}

KINDS = ("family", "method", "sampler", "tracker", "validator")


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> Environment:
    wheels = sorted(Path(os.environ["FVD_WHEELS"]).glob("*.whl"))
    good = [wheel for wheel in wheels if not wheel.name.startswith(BAD)]
    made = Environment(tmp_path_factory.mktemp("ecosystem"), *good)
    made.pip("install", "--no-deps", *(str(wheel) for wheel in wheels if wheel not in good))
    made.fvd("wan", "tiny", "models/wan-tiny")
    made.fvd("data", "prepare", "clips/", "--family", "fvd-wan:wan", "--model", "models/wan-tiny", "--out", "data/clips")
    return made


# --- all of them together --------------------------------------------------------------------------------------------
def test_states_and_codes(env):
    listed = json.loads(env.fvd("plugins", "list", "--json"))["plugins"]
    found = {one["name"]: (one["distribution"], one["version"], one["state"], one["code"]) for one in listed}
    assert found == STATES


def test_the_listing_says_what_is_wrong(env):
    text = env.fvd("plugins", "list")
    assert text.splitlines()[0].endswith("12 of 14 plugins usable")
    for words in (
        "P02 needs fvd-core<0.1, have 0.1.0",
        "P03 import failed: missing dependency 'fvd_torn_native_kernels' (fvd_torn.kernels, line 1)",
        "W01 loads numpy, torch on import",
        "P07 family 'wan' is provided by acme-wan and fvd-wan: nobody wins",
    ):
        assert words in text


def write_run_file(env: Environment, name: str, **recipe: str) -> str:
    """A finetuning or distillation of the tiny Wan, with the tracker and the sampler of other people."""
    roles = ("student",) if recipe["method"] == "finetune" else ("student", "teacher")
    document = {
        "recipe": recipe,
        "roles": {role: {"path": "models/wan-tiny"} for role in roles},
        "training": {
            "output_dir": f"outputs/{name}",
            "data_path": "data/clips",
            "max_train_steps": 2,
            "log_validation": True,
            "validation_dataset_file": "prompts.txt",
            "validation_sampling_steps": 2,
            "validation_guidance_scale": 2,
            "trackers": ["csv"],
        },
        "pipeline_config": {"sampler_kind": "heun"},
    }
    (env.work / f"{name}.yaml").write_text(json.dumps(document))  # JSON is YAML
    return f"{name}.yaml"


def test_a_run_with_a_method_a_sampler_and_a_tracker_of_others(env):
    """And with a family of a taken name, and its validator."""
    env.fvd("run", write_run_file(env, "first", family="acme-wan:wan", method="finetune"))
    env.fvd("run", write_run_file(env, "second", family="fvd-wan:wan", method="consistency"))
    assert "2,train/loss" in (env.work / "outputs/first/logs/csv/metrics.csv").read_text()
    assert (env.work / "outputs/first/validation/step-00000002/strip.mp4").stat().st_size > 0
    videos = sorted(path.name for path in (env.work / "outputs/second/validation/step-00000002").glob("*.mp4"))
    assert videos == ["000_sde_2_steps.mp4", "001_sde_2_steps.mp4"]
    lock = json.loads((env.work / "outputs/first/run.lock.json").read_text())
    used = {plugin["distribution"]: plugin["components"] for plugin in lock["plugins"]}
    assert used == {
        "acme-wan": ["family:wan"],
        "fvd-core": ["dataset_kind:parquet"],
        "fvd-csv": ["tracker:csv"],
        "fvd-finetune": ["method:finetune"],
        "fvd-heun": ["sampler:heun"],
        "fvd-strip": ["validator:strip"],
    }
    env.fvd("run", "first.yaml", "--locked", "--set", "training.max_train_steps=3")
    env.fvd("sample", "outputs/second", "--prompt", "x", "--out", "second.mp4", "--sampler", "slow", "--steps", "2")


def test_a_name_that_two_provide_is_refused(env):
    said = env.fvd_fails("run", write_run_file(env, "unclear", family="wan", method="finetune"))
    assert "'acme-wan:wan' or 'fvd-wan:wan'" in said
    assert "[P07]" in said
    assert not (env.work / "outputs/unclear").exists()


def test_locked_refuses_a_plugin_that_was_edited(env):
    """In place, in site-packages: RECORD would not tell."""
    env.fvd("run", write_run_file(env, "locked", family="fvd-wan:wan", method="finetune"))
    (table,) = (env.folder / "venv").glob("lib/*/site-packages/fvd_csv/table.py")
    source = table.read_text()
    table.write_text(source + "\n")
    try:
        said = env.fvd_fails("run", "locked.yaml", "--locked")
    finally:
        table.write_text(source)
    assert "plugin csv (fvd-csv)" in said
    assert "[P12]" in said


@pytest.mark.parametrize("component", ["acme-wan:wan", "cogvideox", "consistency", "csv", "heun", "ltx", "strip"])
def test_the_good_ones_pass_their_checks(env, component):
    assert "failed" not in env.fvd("plugins", "check", component)


def test_the_slow_one_fails_one_check(env):
    result = env.run("fvd", "plugins", "check", "slow")
    assert result.returncode == 1
    assert "✗ S03" in result.stdout
    assert "11 passed, 1 failed" in result.stdout


# --- what `fvd plugins new` writes -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_built_installed_and_passes(env, kind):
    env.fvd("plugins", "new", f"fvd-new-{kind}", "--kind", kind)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "new", f"fvd-new-{kind}"]
    result = subprocess.run(build, cwd=env.work, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (env.work / "new").glob(f"fvd_new_{kind}-*.whl")
    env.pip("install", str(wheel))
    listed = {one["distribution"]: one for one in json.loads(env.fvd("plugins", "list", "--json"))["plugins"]}
    mine = listed[f"fvd-new-{kind}"]
    assert (mine["state"], mine["provides"][0].partition(":")[0]) == ("ok", kind)
    env.fvd("plugins", "check", mine["name"])
