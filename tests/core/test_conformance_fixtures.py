"""The public fixtures, used as a plugin's author would."""

from __future__ import annotations

import json
from importlib.metadata import distribution

import pytest

from fvd.plugins import load_plugins

pytest_plugins = ["fvd.testing.fixtures"]

PLUGIN = """
    import fvd

    @fvd.hookimpl
    def fvd_samplers():
        return [fvd.SamplerSpec(name="loop", target="fvd.samplers.ode:sample_ode", summary="a loop")]
"""
DIST = {"entry_points": {"x": "acme_fixture.plugin"}, "modules": {"acme_fixture.plugin": PLUGIN}}


def names() -> list[str]:
    return [record.name for record in load_plugins().records]


def test_a_distribution_for_one_test(fake_dist):
    assert "x" not in names()
    folder = fake_dist(
        "acme-fixture", "2.0", **DIST, summary="Short", direct_url={"url": "file:///src"}, files={"a/b.txt": "c"}
    )
    assert "x" in names()
    installed = distribution("acme-fixture")
    assert (installed.version, installed.metadata["Summary"]) == ("2.0", "Short")
    assert json.loads(installed.read_text("direct_url.json") or "") == {"url": "file:///src"}
    assert (folder / "a/b.txt").read_text() == "c"


def test_it_is_gone_afterwards():
    assert "x" not in names()


def test_nothing_else_is_installed(fake_dist, isolated_plugins, run_fvd, monkeypatch):
    assert names() == ["core"]
    fake_dist("acme-fixture", **DIST)
    assert names() == ["x", "core"]
    listed = run_fvd("plugins", "list", "--json").json()["plugins"]
    assert [(plugin["name"], plugin["state"]) for plugin in listed] == [("x", "ok"), ("core", "ok")]


@pytest.mark.usefixtures("isolated_plugins")
def test_isolation_does_not_outlive_its_test_and_ignores_the_environment():
    assert names() == ["core"]


def test_a_command_in_a_process_of_its_own(run_fvd, tmp_path):
    finished = run_fvd("plugins", "show", "nobody", cwd=tmp_path, env={"FVD_PLUGINS": ""})
    assert finished.returncode == 1
    assert "nobody" in finished.stderr
    with pytest.raises(AssertionError, match="exit status 1, no JSON"):
        finished.json()
