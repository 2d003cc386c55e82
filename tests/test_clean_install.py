"""Wheels in a fresh environment, used as a stranger would. `nox -s wheels` builds them and names their folder.

The tests share one environment and run in the order of this file: the later ones uninstall distributions.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from clean_environment import Environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("FVD_WHEELS" not in os.environ, reason="FVD_WHEELS names no folder of wheels; run `nox -s wheels`"),
]

DISTRIBUTIONS = ["fvd-core", "fvd-dmd2", "fvd-finetune", "fvd-wan"]


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> Environment:
    wheels = sorted(Path(os.environ["FVD_WHEELS"]).glob("*.whl"))
    assert [wheel.name.split("-")[0].replace("_", "-") for wheel in wheels] == DISTRIBUTIONS
    return Environment(tmp_path_factory.mktemp("stranger"), *wheels)


def test_requirements_are_satisfied(env):
    assert env.run("python", "-m", "pip", "check").returncode == 0


def test_plugins_list(env):
    listed = json.loads(env.fvd("plugins", "list", "--json"))
    assert listed.keys() == {"core", "plugins", "remarks"}
    assert listed["remarks"] == []
    assert [plugin["distribution"] for plugin in listed["plugins"]] == DISTRIBUTIONS
    assert {plugin["state"] for plugin in listed["plugins"]} == {"ok"}
    assert {plugin["version"] for plugin in listed["plugins"]} == {listed["core"]["version"]}  # lockstep
    provided = {name for plugin in listed["plugins"] for name in plugin["provides"]}
    assert {"family:wan", "method:dmd2", "method:finetune", "sampler:ode", "sampler:sde", "command:wan"} <= provided
    assert "family:wan" in env.fvd("plugins", "list")


def test_everything_a_user_does(env):
    """The commands of the README, in order; shorter runs."""
    short = ["--set", "training.max_train_steps=4", "--set", "training.validation_steps=4"]
    env.fvd("wan", "tiny", "models/wan-tiny")
    env.fvd("data", "prepare", "clips/", "--family", "wan", "--model", "models/wan-tiny", "--out", "data/clips")
    env.fvd("check", "finetune.yaml")
    env.fvd("run", "finetune.yaml", *short)
    env.fvd("export", "outputs/finetune", "--out", "exported-finetune")
    env.fvd("check", "dmd2.yaml")
    env.fvd("run", "dmd2.yaml", *short, "--set", "method_config.generator_update_interval=2")
    env.fvd("sample", "outputs/dmd2", "--prompt", "a red ball rolling left", "--out", "sample.mp4")
    env.fvd("export", "outputs/dmd2", "--role", "student", "--to", "diffusers", "--out", "exported")
    assert (env.work / "sample.mp4").stat().st_size > 0
    # At two steps, of two prompts: finetune's sample; dmd2's with the weights and with their average, and a panel.
    assert len(list(env.work.glob("outputs/finetune/validation/*/*.mp4"))) == 4
    assert len(list(env.work.glob("outputs/dmd2/validation/*/*.mp4"))) == 12
    reload = "import sys; from diffusers import WanPipeline; WanPipeline.from_pretrained('exported')"
    assert env.run("python", "-c", reload).returncode == 0


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plugins", "list"], ["plugins", "show", "wan"], ["check", "finetune.yaml"], ["schema"]]
)
def test_light_commands_load_neither_torch_nor_diffusers(env, arguments):
    code = (
        "import sys; from fvd.cli.main import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules); "
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    result = env.run("python", "-c", code, *arguments)
    assert result.returncode == 0, result.stderr


def test_after_uninstalling_a_method_the_rest_works(env):
    env.pip("uninstall", "-y", "fvd-dmd2")
    for command in ("run", "check"):
        result = env.run("fvd", command, "dmd2.yaml")
        assert result.returncode == 1
        assert "pip install fvd-dmd2" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    said = env.fvd_fails("run", "dmd2.yaml").splitlines()
    assert len(said) == 2, said
    env.fvd("plugins", "list")
    env.fvd("check", "finetune.yaml")
    env.fvd("run", "finetune.yaml", "--set", "training.max_train_steps=5", "--set", "training.log_validation=false")


def test_core_alone_answers(env):
    env.pip("uninstall", "-y", "fvd-wan", "fvd-finetune")
    for arguments in (
        ["--help"],
        ["--version"],
        ["plugins", "list"],
        ["plugins", "matrix"],
        ["plugins", "show", "core"],
        ["schema"],
    ):
        env.fvd(*arguments)
    for arguments in (
        ["run", "finetune.yaml"],
        ["sample", "outputs/finetune", "--prompt", "x", "--out", "x.mp4"],
        ["export", "outputs/finetune", "--out", "x"],
        ["data", "prepare", "clips/", "--family", "wan", "--model", "models/wan-tiny", "--out", "data/again"],
    ):
        assert "pip install fvd-wan" in env.fvd_fails(*arguments)
    assert env.run("fvd", "check", "finetune.yaml").returncode == 1
    unknown = env.run("fvd", "wan", "tiny", "x")
    assert unknown.returncode == 2
    assert "pip install fvd-wan" in unknown.stderr
