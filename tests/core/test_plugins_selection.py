"""Switching plugins off: one vocabulary in every place, nothing imported, no misspelling swallowed."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from fvd.errors import PluginError
from fvd.plugins import load_plugins
from fvd.testing import fake_distribution, installed_in


@pytest.fixture
def states(tmp_path, monkeypatch):
    """Three installed plugins; a function that loads with some switches and returns the state of each."""
    for variable in ("FVD_PLUGINS", "FVD_DISABLE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("one", "two", "three"):
        fake_distribution(tmp_path, f"Acme.{name}", entry_points={f"x_{name}": f"sel_{name}"}, modules={f"sel_{name}": ""})

    def load(*, environment=None, **options):
        with monkeypatch.context() as patch, installed_in(tmp_path):
            for variable, value in (environment or {}).items():
                patch.setenv(variable, value)
            plugins = load_plugins(**options)
            ours = [record for record in plugins.records if record.distribution.startswith("Acme.")]
            for record in ours:
                assert (record.module in sys.modules) == (record.state == "ok")
                assert record.state == "ok" or (record.code == "P10" and record.reason)
            core = [record.state for record in plugins.records if record.name == "core"]
            return {record.name.removeprefix("x_") for record in ours if record.state == "ok"}, core

    return partial(load)


ALL = {"one", "two", "three"}


def test_everything_is_on_by_default(states):
    assert states() == (ALL, ["ok"])


@pytest.mark.parametrize("name", ["x_one", "x-one", "X.One", "Acme.one", "acme-one", "ACME_ONE", " acme-one "])
def test_any_spelling_of_plugin_or_distribution_disables(states, name):
    assert states(disable=[name])[0] == ALL - {"one"}
    assert states(only=[name])[0] == {"one"}
    assert states(environment={"FVD_DISABLE_PLUGINS": f"{name},x_two,"})[0] == {"three"}


def test_the_allow_list_has_three_states(states):
    assert states(environment={"FVD_PLUGINS": ""}) == (set(), ["ok"])
    assert states(environment={"FVD_PLUGINS": "x_two, acme-three"}) == ({"two", "three"}, ["ok"])
    assert states(only=[]) == (set(), ["ok"])
    assert states(only=None)[0] == ALL


def test_a_run_file_cannot_widen_what_the_environment_allows(states):
    assert states(only=["x_one", "x_two"], environment={"FVD_PLUGINS": "x_two,x_three"})[0] == {"two"}
    assert states(only=["x_one", "x_two"], disable=["x_two"])[0] == {"one"}


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"disable": ["x_onee"]}, "-p no:NAME"),
        ({"only": ["x_onee"]}, "plugins.only"),
        ({"environment": {"FVD_DISABLE_PLUGINS": "x_onee"}}, "FVD_DISABLE_PLUGINS"),
        ({"environment": {"FVD_PLUGINS": "x_onee"}}, "FVD_PLUGINS"),
    ],
)
def test_a_misspelt_name_is_an_error_that_names_the_place(states, options, place):
    with pytest.raises(PluginError) as caught:
        states(**options)
    assert caught.value.message == f"{place} names 'x_onee', but no such plugin is installed (did you mean 'x_one'?)"
    assert "x_three" in caught.value.cure


def test_all_misspelt_names_are_reported_at_once(states):
    with pytest.raises(PluginError) as caught:
        states(disable=["qq"], environment={"FVD_PLUGINS": "zz"})
    assert "'qq'" in caught.value.message
    assert "'zz'" in caught.value.message


@pytest.mark.parametrize("name", ["core", "fvd_core"])
def test_core_cannot_be_disabled(states, name):
    with pytest.raises(PluginError, match="core cannot be disabled"):
        states(disable=[name])
    assert states(only=[name]) == (set(), ["ok"])


def test_the_listing_says_where_a_plugin_was_disabled(tmp_path, monkeypatch):
    monkeypatch.setenv("FVD_PLUGINS", "")
    fake_distribution(tmp_path, "acme-off", entry_points={"off": "acme_off"}, modules={"acme_off": ""})
    with installed_in(tmp_path):
        (record,) = [record for record in load_plugins(disable=["off"]).records if record.name == "off"]
    assert record.reason == "disabled by -p no:NAME and not among FVD_PLUGINS"
