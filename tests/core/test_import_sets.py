"""What light commands load: decided by the set of imported modules, the same on every machine."""

from __future__ import annotations

import sys

import pytest

from fvd.testing import assert_light_module, fake_dist, installed_in, loaded_modules

NEVER = {"torch", "numpy", "diffusers", "transformers", "pyarrow", "av", "wandb", "tensorboard", "rich"}


def command(*arguments: str) -> str:
    return f"from fvd.cli.main import main; assert main({list(arguments)!r}) == 0"


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import fvd", {"yaml", "pydantic", "pluggy", "argparse", "fvd.specs"}),
        ("import fvd; fvd.hookimpl, fvd.FamilySpec, fvd.MethodSpec", {"yaml", "pydantic", "packaging"}),
        ("import fvd.plugins", {"yaml", "pydantic", "packaging"}),
        (command("--version"), {"yaml", "pydantic", "pluggy", "importlib.metadata", "fvd.specs", "fvd.plugins"}),
        (command("--help"), {"yaml", "pydantic"}),
        (command("plugins", "list"), {"yaml", "pydantic"}),
        (command("plugins", "list", "--json"), {"yaml", "pydantic"}),
        (command("plugins", "show", "core"), {"yaml", "pydantic"}),
        (command("plugins", "list", "-p", "toy", "-p", "toy_noise"), {"yaml", "pydantic"}),
        (command("plugins", "matrix", "-p", "toy"), {"yaml", "pydantic"}),
        (command("plugins", "matrix"), {"yaml", "pydantic"}),
    ],
)
def test_import_set(code, forbidden):
    loaded = loaded_modules(code)
    assert any(name.startswith("fvd") for name in loaded)
    assert not loaded & (NEVER | forbidden)


def test_thirty_plugins_load_thirty_light_modules(tmp_path):
    """A listing with 30 plugins more loads those, and nothing else that one without them does not load."""
    source = """
        import fvd

        @fvd.hookimpl
        def fvd_methods():
            roles = {{"student": fvd.RoleNeeds(trainable=True)}}
            return [fvd.MethodSpec(name="many_{0}", target="many_{0}.method:M", config="many_{0}.config:C", roles=roles)]
    """
    for index in range(30):
        modules = {f"many_{index}.plugin": source.format(index), f"many_{index}.method": "import torch"}
        requires = ["fvd-core>=0.1,<1", "torch"]
        fake_dist(
            tmp_path,
            f"many-{index}",
            entry_points={f"many_{index}": f"many_{index}.plugin"},
            modules=modules,
            requires=requires,
        )
    without = loaded_modules(command("plugins", "list"))
    with installed_in(tmp_path):
        loaded = loaded_modules(command("plugins", "list"))
    own = {name for index in range(30) for name in (f"many_{index}", f"many_{index}.plugin")}
    assert own <= loaded
    assert not loaded & NEVER
    assert not loaded - own - without - sys.stdlib_module_names


@pytest.mark.parametrize(
    "module",
    [
        "fvd.plugin",
        "fvd.testing.toy.plugin",
        "fvd.testing.toy_noise.plugin",
        "fvd_wan.plugin",
        "fvd_dmd2.plugin",
        "fvd_finetune.plugin",
    ],
)
def test_plugin_modules_are_light(module):
    pytest.importorskip(module.partition(".")[0])
    assert_light_module(module)


def test_a_heavy_module_is_caught(tmp_path):
    modules = {"x_light.plugin": "import fvd, json", "x_heavy.plugin": "import x_light.plugin", "x_wrong.plugin": "1 / 0"}
    fake_dist(tmp_path, "x-heavy", modules=modules)
    with installed_in(tmp_path):
        assert_light_module("x_light.plugin")
        with pytest.raises(AssertionError, match=r"x_heavy\.plugin is not light: importing it loads x_light"):
            assert_light_module("x_heavy.plugin")
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            assert_light_module("x_wrong.plugin")
