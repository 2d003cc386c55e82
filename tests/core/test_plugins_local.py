"""`--plugin FILE`: one file, no packaging, the same hooks."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fvd.cli.main import main
from fvd.errors import PluginError
from fvd.plugins import load_plugins
from fvd.testing import fake_dist, installed_in

SOURCE = """
    import jax
    import fvd

    @fvd.hookimpl
    def fvd_samplers():
        return [fvd.SamplerSpec(name="{name}", target="{module}:sample")]

    def sample():
        return "{module}"

    class Thing:
        pass
""".replace("\n    ", "\n")


NO_SAMPLER = "import fvd\n@fvd.hookimpl\ndef fvd_samplers(): return []"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Holds the files; jax is a stand-in for heavy modules. Modules and the path are as before afterwards."""
    for variable in ("FVD_PLUGINS", "FVD_DISABLE_PLUGINS", "FVD_STRICT_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    site, folder = tmp_path / "site", tmp_path / "work"
    folder.mkdir()
    fake_dist(site, "x-jax", modules={"jax": ""})
    with installed_in(site):
        before = set(sys.modules)
        yield folder
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in sys.modules[name].__file__:
                del sys.modules[name]


def write(folder, name: str, source: str | None = None) -> str:
    path = folder / f"{name}.py"
    path.write_text(SOURCE.format(name=f"{name}_loop", module=name) if source is None else source)
    return str(path)


def test_a_file_is_a_plugin_and_may_import_what_it_likes(folder):
    path = write(folder, "a_local_file")
    plugins = load_plugins(files=[path])
    (record,) = [record for record in plugins.records if record.distribution == "local"]
    assert (record.name, record.version, record.module, record.file) == ("a_local_file", "-", "a_local_file", path)
    assert (record.state, record.code, record.provides) == ("ok", "", ("sampler:a_local_file_loop",))
    for name in ("a_local_file_loop", "local:a_local_file_loop"):
        assert plugins.load("sampler", name)() == "a_local_file"
    assert sys.path[-1] == str(folder)
    assert load_plugins(files=[path]).records == plugins.records


def test_its_objects_can_be_sent_to_other_processes(folder):
    """A data loader's workers get ``sys.path`` and the module's name, no more."""
    load_plugins(files=[write(folder, "a_local_pickle")])
    sent = pickle.dumps(sys.modules["a_local_pickle"].Thing())
    code = f"import pickle, sys; sys.path[:] = {sys.path!r}; print(type(pickle.loads({sent!r})).__name__)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "Thing\n"


def test_modules_beside_it_can_be_imported_and_never_hide_others(folder):
    write(folder, "a_helper_beside", "answer = 42")
    write(folder, "json", "raise RuntimeError('the wrong json')")
    source = f"import json, a_helper_beside\nassert a_helper_beside.answer == 42 and json.dumps\n{NO_SAMPLER}"
    path = write(folder, "a_local_main", source)
    assert load_plugins(files=[path]).records


def test_several_files_and_one_twice(folder, monkeypatch):
    first, second = write(folder, "a_local_one"), write(folder, "a_local_two")
    monkeypatch.chdir(folder)
    plugins = load_plugins(files=[first, second, "./a_local_one.py", "../work/a_local_two.py"])
    assert [r.name for r in plugins.records if r.distribution == "local"] == ["a_local_one", "a_local_two"]
    assert plugins.load("sampler", "local:a_local_two_loop")() == "a_local_two"


def error_of(*files: str, **options) -> PluginError:
    with pytest.raises(PluginError) as caught:
        load_plugins(files=files, **options)
    return caught.value


def test_files_that_are_none_are_told_all_at_once(folder):
    (folder / "text.txt").write_text("")
    (folder / "a-hyphen.py").write_text("")
    paths = [str(folder / name) for name in ("nowhere.py", "text.txt", "a-hyphen.py")] + [str(folder)]
    lines = error_of(*paths).message.splitlines()
    assert lines == [
        f"--plugin {paths[0]}: there is no such file [P01]",
        f"--plugin {paths[1]}: is not a .py file [P01]",
        f"--plugin {paths[2]}: 'a-hyphen' is not a name that can be imported; letters, digits and _ are [P01]",
        f"--plugin {paths[3]}: is not a .py file [P01]",
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\n1 / 0", ["ZeroDivisionError", "a_local_bad, line 2", "P03", "Correct the file."]),
        ("def f(:", ["SyntaxError", "a_local_bad.py, line 1", "P03"]),
        ("import nowhere_at_all", ["missing dependency 'nowhere_at_all'", "line 1", "P03", "Install what the file imports."]),
        ("import sys; sys.exit(3)", ["SystemExit: 3", "P03"]),
        ("import fvd\n@fvd.hookimpl\ndef fvd_familys(): return []", ["did you mean 'fvd_families'", "P04"]),
        ("import fvd\n@fvd.hookimpl\ndef fvd_families(): return 3", ["got int", "P05"]),
        ("def train(): pass", ["implements no hook", "P04", "@fvd.hookimpl", "fvd_families", "fvd_methods", "fvd_step_end"]),
        ("", ["implements no hook"]),
    ],
)
def test_a_file_that_fails_is_an_error_because_the_user_asked_for_it(folder, source, words):
    path = write(folder, "a_local_bad", source)
    text = str(error_of(path))
    for word in [*words, f"--plugin {path}"]:
        assert word in text
    assert "pip install" not in text
    assert "authors" not in text


@pytest.mark.parametrize("stem", ["random", "pytest", "fvd_wan", "sys"])
def test_the_name_of_another_module_is_refused(folder, stem):
    path = write(folder, stem, "raise RuntimeError('never imported')")
    error = str(error_of(path))
    assert f"the name {stem!r} is that of a module that is there already" in error
    assert error.endswith("Rename the file.")
    assert str(folder) not in sys.path


def test_a_file_in_the_current_folder_is_no_stranger(folder, monkeypatch):
    """`python -m` puts the current folder on the path, and the file is found there: as itself."""
    path = write(folder, "a_local_here", SOURCE.format(name="here", module="a_local_here"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert load_plugins(files=[path]).load("sampler", "here")() == "a_local_here"


def test_a_plugin_that_is_installed_and_a_file_of_one_name(folder, tmp_path):
    fake_dist(tmp_path / "site", "x-same", entry_points={"a_local_same": "x_same"}, modules={"x_same": ""})
    path = write(folder, "a_local_same")
    error = str(error_of(path))
    assert f"'a_local_same' is claimed by {path} and x-same [P06]" in error
    assert error.endswith(f"Rename {path}, or leave it out.")
    assert load_plugins(files=[path], disable=["x-same"]).load("sampler", "a_local_same_loop")() == "a_local_same"


def test_two_files_of_one_name(folder):
    (folder / "older").mkdir()
    paths = [write(folder, "a_local_twin"), write(folder / "older", "a_local_twin")]
    error = str(error_of(*paths))
    assert f"'a_local_twin' is claimed by {paths[0]} and {paths[1]} [P06]" in error
    assert f"Rename {paths[0]} or {paths[1]}, or leave one of them out." in error
    assert "no:local" not in error


def test_it_is_switched_off_like_any_plugin(folder):
    path = write(folder, "a_local_off", "1 / 0")
    for options in ({"disable": ["a_local_off"]}, {"disable": ["local"]}):
        (record,) = [r for r in load_plugins(files=[path], **options).records if r.distribution == "local"]
        assert (record.state, record.code) == ("disabled", "P10")
    assert "a_local_off" not in sys.modules


def test_on_the_command_line(folder, capsys, monkeypatch):
    path = write(folder, "a_local_command")
    assert main(["plugins", "list", "--plugin", path]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if "a_local_command" in line]
    assert row[:5] == ["a_local_command", "local", "-", "ok", "sampler:a_local_command_loop"]
    assert main(["plugins", "list", "--plugin", str(folder / "gone.py")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"fvd: --plugin {folder / 'gone.py'}: there is no such file")


RUN_FILE = """
recipe: {family: toy, method: of_a_file}
roles: {student: {path: random}}
training: {output_dir: OUT, max_train_steps: 1, learning_rate: 1e-3}
method_config: {knob: 2}
"""
METHOD_FILE = """
import torch
import fvd

class Config(fvd.MethodConfig):
    knob: int = 1

@fvd.hookimpl
def fvd_methods():
    roles = {"student": fvd.RoleNeeds(trainable=True)}
    return [fvd.MethodSpec(name="of_a_file", target="a_local_method:Missing", config="a_local_method:Config", roles=roles)]
"""


def test_a_run_file_uses_a_method_of_a_file_on_a_family_on_request(folder, capsys):
    """Neither the family's plugin nor the method's is loaded by default; the file names the one, the user the other."""
    path = write(folder, "a_local_method", METHOD_FILE)
    run_file = folder / "run.yaml"
    run_file.write_text(RUN_FILE.replace("OUT", str(folder / "out")))
    assert main(["check", str(run_file), "--plugin", path]) == 0
    assert main(["check", str(run_file), "--plugin", path, "--set", "method_config.knobb=1"]) == 1
    assert "did you mean 'knob'" in capsys.readouterr().out
    assert main(["check", str(run_file)]) == 1
    assert "'of_a_file'" in capsys.readouterr().out
    assert main(["run", str(run_file), "--plugin", path]) == 1
    assert "the module has no 'Missing'" in capsys.readouterr().err


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_run_opened_without_its_file_says_that_first(folder, capsys, monkeypatch):
    """Not that a name is unknown, which the file explains; what else is wrong comes after."""
    monkeypatch.chdir(folder)
    path = folder / "my_method.py"
    shutil.copy(EXAMPLES / "my_method.py", path)
    assert main(["run", str(EXAMPLES / "toy.yaml"), "--plugin", str(path), "--set", "training.max_train_steps=1"]) == 0
    (run_file,) = folder.rglob("run.yaml")
    asked = ["sample", str(run_file.parent), "--prompt", "x", "--out", "x.mp4"]
    capsys.readouterr()
    assert main(asked) == 1
    said = f"{run_file}: error: the run was made with the plugin file {path}\n    Add --plugin {path}\n"
    assert capsys.readouterr().err == f"fvd: {said}"
    text = run_file.read_text(encoding="utf-8")
    run_file.write_text(text.replace("family: toy", "family: toyy", 1), encoding="utf-8")
    assert main(asked) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"fvd: {said}")
    assert "there is no family 'toyy'" in error
    assert "there is no method" not in error
