"""For authors: `--strict-plugins` makes every finding an error, FVD_TRACE_PLUGINS=1 shows where time goes."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial

import pytest

from fvd.cli.main import main
from fvd.errors import PluginError
from fvd.plugins import load_plugins
from fvd.testing import fake_dist, installed_in

GOOD = """
    import fvd

    @fvd.hookimpl
    def fvd_samplers():
        return [fvd.SamplerSpec(name="{name}", target="a:b")]

    @fvd.hookimpl
    def fvd_run_start(run):
        {body}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    for variable in ("FVD_PLUGINS", "FVD_DISABLE_PLUGINS", "FVD_STRICT_PLUGINS", "FVD_TRACE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    with installed_in(tmp_path):
        yield partial(fake_dist, tmp_path)


def install_trouble(install) -> None:
    modules = {"x_raises.plugin": "from x_raises import deep", "x_raises.deep": "def f():\n    return {}['gone']\n\nf()"}
    install("x-raises", entry_points={"raises": "x_raises.plugin"}, modules=modules)
    install("x-old", entry_points={"old": "x_old"}, modules={"x_old": ""}, requires=["fvd-core>=99"])
    install("x-slow", entry_points={"slow": "x_slow"}, modules={"x_slow": "import jax", "jax": ""})
    install("x-off", entry_points={"off": "x_off"}, modules={"x_off": "1 / 0"})


# --- strict ----------------------------------------------------------------------------------------------------------
def test_strict_raises_everything_at_once_with_the_traceback_of_the_plugin_alone(install):
    install_trouble(install)
    with pytest.raises(PluginError) as caught:
        load_plugins(strict=True, disable=["off"])
    text = str(caught.value)
    assert "plugin raises (x-raises 1.0) is broken: import failed: KeyError: 'gone' (x_raises.deep, line 2) [P03]" in text
    assert "plugin old (x-old 1.0) is incompatible: needs fvd-core>=99" in text
    assert re.search(r"plugin slow \(x-slow 1\.0\) is slow: loads jax on import \(\d+ ms\).* \[W01\]", text)
    assert "x-off" not in text
    shown = re.findall(r'File ".*/(\w+)\.py", line (\d+)', text)
    assert shown == [("plugin", "1"), ("deep", "4"), ("deep", "2")]
    assert "loading.py" not in text
    assert "importlib" not in text
    assert text.count("Traceback") == 1
    assert "Report it to the authors of x-raises" in text


def test_strict_is_not_content_with_ok_plugins_that_are_out_of_date_or_in_each_others_way(install, tmp_path):
    for name in ("one", "two"):
        install(f"x-{name}", entry_points={name: f"x_{name}"}, modules={f"x_{name}": GOOD.format(name="loop", body="pass")})
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text("[project.entry-points.'fvd.plugins']\nlater = 'x_later'\n")
    editable = {"url": source.as_uri(), "dir_info": {"editable": True}}
    install("x-stale", entry_points={}, direct_url=editable, modules={"x_stale": ""}, on_request={"stale": "x_stale"})
    assert {record.state for record in load_plugins(request=["stale"]).records} == {"ok"}
    with pytest.raises(PluginError) as caught:
        load_plugins(request=["stale"], strict=True)
    text = str(caught.value)
    assert "sampler 'loop' is provided by x-one and x-two: nobody wins [P07]" in text
    assert "Write 'x-one:loop' or 'x-two:loop'" in text
    assert "x-stale: its source declares `later = x_later`, which is not installed; " in text
    assert f"[W02]\n  python -m pip install --no-deps -e {source}" in text
    with pytest.raises(PluginError) as caught:
        load_plugins(request=["stale"], disable=["one"], strict=True)
    assert "P07" not in str(caught.value)


@pytest.mark.parametrize(("value", "strict"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_variable(install, monkeypatch, value, strict):
    install("x-old", entry_points={"old": "x_old"}, modules={"x_old": ""}, requires=["fvd-core>=99"])
    monkeypatch.setenv("FVD_STRICT_PLUGINS", value)
    if not strict:
        assert load_plugins().records
        return
    with pytest.raises(PluginError, match="P02"):
        load_plugins()
    assert load_plugins(disable=["old"]).records


@pytest.mark.parametrize("argv", [["plugins", "list"], ["plugins", "matrix"], ["check", "RUN"], ["schema"], ["run", "RUN"]])
def test_every_command_that_loads_plugins(install, capsys, tmp_path, argv):
    install("x-old", entry_points={"old": "x_old"}, modules={"x_old": ""}, requires=["fvd-core>=99"])
    run_file = tmp_path / "run.yaml"
    run_file.write_text("recipe: {family: none, method: none}")
    argv = [str(run_file) if word == "RUN" else word for word in argv]
    assert main([*argv, "--strict-plugins"]) == 1
    captured = capsys.readouterr()
    assert "plugin old (x-old 1.0) is incompatible" in captured.out + captured.err
    assert "-p no:old" not in captured.err
    if argv[0] == "plugins":
        assert captured.out == ""
        assert main(argv) == 0


def test_a_file_that_fails_is_shown_with_its_traceback(install, tmp_path):
    path = tmp_path / "a_strict_file.py"
    path.write_text("x = 1\n1 / 0")
    with pytest.raises(PluginError) as caught:
        load_plugins(files=[str(path)], strict=True)
    assert f'File "{path}", line 2, in <module>' in str(caught.value)
    with pytest.raises(PluginError) as caught:
        load_plugins(files=[str(path)])
    assert "Traceback" not in str(caught.value)


# --- trace -----------------------------------------------------------------------------------------------------------
NOTIFY = """
import logging
from fvd.plugins import load_plugins
logging.disable()
plugins = load_plugins()
for _ in range(3):
    plugins.notify("fvd_run_start", run=None)
plugins.notify("fvd_step_end", run=None, step=None)
try:
    plugins.load("sampler", "napper_loop")
except Exception:
    pass
print("done")
"""


def run_traced(folder, value: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(folder), "FVD_TRACE_PLUGINS": value, "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", NOTIFY], capture_output=True, text=True, env=environment, check=True)


def test_trace_says_what_each_plugin_costs(install, tmp_path):
    install("x-nap", "2.0", entry_points={"nap": "x_nap"}, modules={
        "x_nap": GOOD.format(name="napper_loop", body="import time; time.sleep(0.02)")
    })  # fmt: skip
    install("x-fail", entry_points={"fail": "x_fail"}, modules={"x_fail": GOOD.format(name="fail_loop", body="1 / 0")})
    finished = run_traced(tmp_path, "1")
    assert finished.stdout == "done\n"
    lines, table = finished.stderr.split("fvd trace: time by plugin and hook\n")
    calls = re.findall(r"^fvd trace: nap \(x-nap 2\.0\)  (.+)  ([\d.]+) ms$", lines, flags=re.MULTILINE)
    assert [what for what, _ in calls] == ["import", "fvd_samplers", *["fvd_run_start"] * 3, "target a:b"]
    assert all(20 <= float(ms) < 2000 for what, ms in calls if what == "fvd_run_start")
    header, *rows = [re.split(r"  +", line) for line in table.splitlines()]
    assert header == ["PLUGIN", "HOOK", "CALLS", "MS"]
    totals = {(plugin, hook): (int(count), float(ms)) for plugin, hook, count, ms in rows}
    assert totals["nap (x-nap 2.0)", "fvd_run_start"][0] == 3
    assert totals["nap (x-nap 2.0)", "fvd_run_start"][1] == pytest.approx(
        sum(float(ms) for what, ms in calls if what == "fvd_run_start"), abs=0.01
    )
    assert totals["fail (x-fail 1.0)", "fvd_run_start"][0] == 3  # one that raises counts too
    assert rows[0][:2] == ["nap (x-nap 2.0)", "fvd_run_start"]
    assert not any(hook == "fvd_step_end" for _, hook in totals)  # nobody implements it


@pytest.mark.parametrize("value", ["", "0"])
def test_without_it_nothing_is_said(install, tmp_path, value):
    install("x-nap", entry_points={"nap": "x_nap"}, modules={"x_nap": GOOD.format(name="napper_loop", body="pass")})
    assert run_traced(tmp_path, value).stderr == ""
