"""Editable installations that are out of date (W02), and distributions that hide others."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import pytest

from fvd.plugins import load_plugins
from fvd.plugins.installed import editable_distributions, shadowed_distributions, stale_entry_points, stale_plugins
from fvd.testing import fake_dist, installed_in

PYPROJECT = """
[project]
name = "acme-ltx"

[project.entry-points."fvd.plugins"]
{declared}

[project.entry-points."another.group"]
ignored = "x.y"
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    monkeypatch.delenv("FVD_PLUGINS", raising=False)
    monkeypatch.delenv("FVD_DISABLE_PLUGINS", raising=False)
    site = tmp_path / "site"
    with installed_in(site):
        yield partial(fake_dist, site)


@pytest.fixture
def source(tmp_path):
    """A source folder, with a space in its name."""
    folder = tmp_path / "my source"
    folder.mkdir()
    return folder


def make_editable(site: Path, source: Path, name: str = "acme_ltx-1.0", **direct_url: object) -> None:
    document = {"url": source.as_uri(), "dir_info": {"editable": True}} | direct_url
    (site / f"{name}.dist-info" / "direct_url.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("declared", "not_installed", "not_declared"),
    [
        ('ltx = "acme_ltx.plugin"', (), ()),
        ('ltx = "acme_ltx.plugin"\nltx2 = "acme_ltx.two"', ("ltx2 = acme_ltx.two",), ()),
        ("", (), ("ltx = acme_ltx.plugin",)),
        ('ltx = "acme_ltx.moved"', ("ltx = acme_ltx.moved",), ("ltx = acme_ltx.plugin",)),
        (
            'ltx = "acme_ltx.plugin"\n[project.entry-points."fvd.plugins.on_request"]\ntiny = "acme_ltx.tiny"',
            ("tiny = acme_ltx.tiny",),
            (),
        ),
    ],
)
def test_what_the_source_declares_against_what_is_installed(install, source, tmp_path, declared, not_installed, not_declared):
    install("acme-ltx", entry_points={"ltx": "acme_ltx.plugin"}, modules={"acme_ltx.plugin": ""})
    (source / "pyproject.toml").write_text(PYPROJECT.format(declared=declared))
    make_editable(tmp_path / "site", source)
    stale = stale_entry_points(distribution("acme-ltx"))
    if not (not_installed or not_declared):
        assert stale is None
        return
    assert (stale.not_installed, stale.not_declared) == (not_installed, not_declared)
    assert (stale.distribution, stale.version, stale.folder, stale.code) == ("acme-ltx", "1.0", source, "W02")
    for line in [*not_installed, *not_declared]:
        assert f"`{line}`" in stale.reason
    assert stale.cure == f"python -m pip install --no-deps -e '{source}'"
    assert stale_plugins(load_plugins()) == [stale]


@pytest.mark.parametrize(
    "pyproject",
    [
        None,
        "not toml at all [",
        "[tool.poetry]\nname = 'acme-ltx'",
        "[project]\nname = 'acme-ltx'\ndynamic = ['entry-points']",
        "project = 3",
        "[project]\ndynamic = 3\nentry-points = ['a']",
        "[project]\nentry-points = 'fvd.plugins'",
        "[project.entry-points]\n'fvd.plugins' = 'x'",
        "[project.entry-points]\n'fvd.plugins' = {ltx = 'acme_ltx.plugin'}\n'fvd.plugins.on_request' = ['y']",
        b"\xff\xfe",
    ],
)
def test_a_source_that_says_nothing_is_no_finding(install, source, tmp_path, pyproject):
    install("acme-ltx", entry_points={"ltx": "acme_ltx.plugin"}, modules={"acme_ltx.plugin": ""})
    if pyproject is not None:
        (source / "pyproject.toml").write_bytes(pyproject if isinstance(pyproject, bytes) else pyproject.encode())
    make_editable(tmp_path / "site", source)
    assert stale_entry_points(distribution("acme-ltx")) is None
    assert stale_plugins(load_plugins()) == []


@pytest.mark.parametrize(
    "direct_url",
    [
        {"dir_info": {}},
        {"dir_info": {"editable": False}},
        {"dir_info": None},
        {"url": 3},
        {"url": "http://[bad"},
        {"vcs_info": {"commit_id": "abc"}, "dir_info": None},
    ],
)
def test_only_editable_ones_can_be_stale(install, source, tmp_path, direct_url):
    install("acme-ltx", entry_points={"ltx": "acme_ltx.plugin"}, modules={"acme_ltx.plugin": ""})
    (source / "pyproject.toml").write_text(PYPROJECT.format(declared=""))
    assert stale_entry_points(distribution("acme-ltx")) is None
    make_editable(tmp_path / "site", source, **direct_url)
    assert stale_entry_points(distribution("acme-ltx")) is None


def test_an_editable_distribution_whose_first_entry_point_is_not_installed(install, source, tmp_path):
    """It has no record, so only a look at every editable distribution finds it."""
    install("acme-ltx")
    (source / "pyproject.toml").write_text(PYPROJECT.format(declared='ltx = "acme_ltx.plugin"'))
    make_editable(tmp_path / "site", source)
    assert stale_plugins(load_plugins()) == []
    (found,) = [found for found in editable_distributions() if found.name == "acme-ltx"]
    stale = stale_entry_points(found)
    assert stale is not None
    assert stale.not_installed == ("ltx = acme_ltx.plugin",)


def test_damaged_metadata_and_local_files_are_no_findings(install, tmp_path):
    install("x-damaged", entry_points={"damaged": "x_damaged"}, modules={"x_damaged": ""})
    (tmp_path / "site/x_damaged-1.0.dist-info/METADATA").unlink()
    (tmp_path / "site/x_damaged-1.0.dist-info/direct_url.json").write_text("{")
    file = tmp_path / "a_local_for_w02.py"
    file.write_text("import fvd\n@fvd.hookimpl\ndef fvd_samplers(): return []")
    assert [stale for stale in stale_plugins(load_plugins(files=[str(file)])) if stale.distribution != "fvd-core"] == []
    assert "x-damaged" not in [found.distribution for found in shadowed_distributions()]


def test_shadowed_distributions(install, tmp_path):
    install("Acme.LTX", "2.0", entry_points={"ltx": "acme_ltx"}, modules={"acme_ltx": ""})
    with installed_in(tmp_path / "site"):  # the same folder twice hides nothing
        assert [found for found in shadowed_distributions() if "acme" in found.distribution.lower()] == []
    older = tmp_path / "older"
    fake_dist(older, "acme-ltx", "1.0")
    fake_dist(older, "acme-ltx", "0.9")
    sys.path.append(str(older))
    try:
        (found,) = [found for found in shadowed_distributions() if "acme" in found.distribution.lower()]
    finally:
        sys.path.remove(str(older))
    assert found.distribution == "Acme.LTX"
    assert (found.versions[0], set(found.versions)) == ("2.0", {"2.0", "1.0", "0.9"})
    assert found.folders == (tmp_path / "site", older, older)
    assert f"2.0 in {tmp_path / 'site'} hides" in found.reason
    assert "pip uninstall Acme.LTX" in found.cure
