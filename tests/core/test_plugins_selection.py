"""Switching plugins off: one vocabulary in every place, nothing imported, no misspelling swallowed."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from fvd.config.load import load_run_file
from fvd.errors import PluginError
from fvd.plugins import PluginOptions, load_plugins
from fvd.testing import fake_dist, installed_in


@pytest.fixture
def states(tmp_path, monkeypatch):
    """Three installed plugins; a function that loads with some switches and returns the state of each."""
    for variable in ("FVD_PLUGINS", "FVD_DISABLE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("one", "two", "three"):
        fake_dist(tmp_path, f"Acme.{name}", entry_points={f"x_{name}": f"sel_{name}"}, modules={f"sel_{name}": ""})

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
        ({"disable": ["x_onee"]}, "-p no:x_onee"),
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
    fake_dist(tmp_path, "acme-off", entry_points={"off": "acme_off"}, modules={"acme_off": ""})
    with installed_in(tmp_path):
        (record,) = [record for record in load_plugins(disable=["off"]).records if record.name == "off"]
    assert record.reason == "disabled by -p no:off and not among FVD_PLUGINS"


def test_a_file_that_is_given_is_allowed_unless_it_is_switched_off_by_name(tmp_path, monkeypatch):
    """Whoever writes --plugin names it; FVD_PLUGINS and ``plugins.only`` speak of what is installed."""
    path = tmp_path / "sel_a_file.py"
    path.write_text("import fvd\n\n@fvd.hookimpl\ndef fvd_run_start(run): ...\n")
    monkeypatch.delenv("FVD_DISABLE_PLUGINS", raising=False)

    def state(**options) -> str:
        with installed_in(tmp_path):
            (record,) = [record for record in load_plugins(files=[str(path)], **options).records if record.file]
        return record.state

    monkeypatch.setenv("FVD_PLUGINS", "core")
    assert state() == state(only=[]) == state(only=["core"]) == "ok"
    assert state(disable=["sel_a_file"]) == "disabled"
    monkeypatch.setenv("FVD_DISABLE_PLUGINS", "sel_a_file")
    assert state() == "disabled"


# --- loaded on request -----------------------------------------------------------------------------------------------
@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Which of the plugins that are loaded on request are there, and with which state: ``toybox`` has nothing else,
    ``mixed`` has a plugin that is always loaded as well."""

    def ask(environment: dict[str, str] | None = None, **options) -> dict[str, str]:
        for variable in ("FVD_PLUGINS", "FVD_DISABLE_PLUGINS"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in (environment or {}).items():
            monkeypatch.setenv(variable, value)
        with installed_in(tmp_path):
            plugins = load_plugins(**options)
            records = [record for record in plugins.records if record.module.startswith("q_")]
            for record in records:
                assert (record.module in sys.modules) == record.usable
            absent = {"q_ball", "q_kite", "q_extra"} - {record.module for record in records}
            assert not absent & sys.modules.keys()
            assert {name for name in plugins.on_request if name in ("ball", "kite", "extra")} == {n[2:] for n in absent}
            return {record.name: record.state for record in records if record.name != "base"}

    modules = {f"q_{name}": "" for name in ("ball", "kite", "extra", "base")}
    fake_dist(tmp_path, "toybox", on_request={"ball": "q_ball", "kite": "q_kite"}, modules=modules)
    fake_dist(tmp_path, "mixed", entry_points={"base": "q_base"}, on_request={"extra": "q_extra"})
    return ask


def test_nobody_asks_and_nothing_comes(asked):
    assert asked() == {}
    assert asked({"FVD_DISABLE_PLUGINS": "ball"}) == {}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ball", {"ball"}),
        ("BALL", {"ball"}),
        ("toybox:ball", {"ball"}),
        ("toybox", {"ball", "kite"}),
        ("extra", {"extra"}),
        ("mixed:extra", {"extra"}),
        ("mixed", set()),  # it means the plugin that is there anyway
        ("mixed:ball", None),
        ("bal", None),
    ],
)
def test_names_that_ask(asked, name, found):
    for options in (
        {"request": [name]},
        {"only": [name]},
        {"environment": {"FVD_PLUGINS": name}},
        {"mentioned": [name]},
    ):
        if found is not None:
            assert asked(**options) == dict.fromkeys(found, "ok"), options
        elif "mentioned" in options:  # a run file's words may mean anything
            assert asked(**options) == {}
        else:
            with pytest.raises(PluginError, match="no such plugin is installed") as caught:
                asked(**options)
            assert "On request:" in caught.value.cure
            assert "ball, kite" in caught.value.cure


def test_a_misspelt_request_is_an_error_with_a_suggestion(asked):
    with pytest.raises(PluginError) as caught:
        asked(request=["kitte"])
    assert caught.value.message == "-p kitte names 'kitte', but no such plugin is installed (did you mean 'kite'?)"


def test_a_request_is_narrowed_like_everything_else(asked):
    assert asked(request=["ball"], disable=["ball"]) == {"ball": "disabled"}
    assert asked({"FVD_DISABLE_PLUGINS": "toybox"}, request=["ball"]) == {"ball": "disabled"}
    assert asked({"FVD_PLUGINS": "mixed"}, request=["ball"]) == {"ball": "disabled"}
    assert asked({"FVD_PLUGINS": "ball,kite"}, only=["kite"]) == {"ball": "disabled", "kite": "ok"}


def test_the_request_for_a_plugin_that_is_there_anyway_changes_nothing(asked):
    assert asked(request=["base", "core"]) == {}


def test_core_has_toys_and_keeps_them_out_of_the_way(monkeypatch):
    monkeypatch.delenv("FVD_PLUGINS", raising=False)
    assert {"toy", "toy_noise"} <= set(load_plugins().on_request)
    plugins = load_plugins(request=["toy"])
    assert [record.state for record in plugins.records if record.name == "toy"] == ["ok"]
    # Two plugins of one distribution: its name in front of a component's means either.
    assert plugins.spec("sampler", "fvd-core:ode") is plugins.spec("sampler", "ode")
    assert plugins.spec("family", "fvd-core:toy") is plugins.spec("family", "toy")
    assert plugins.spec("sampler", "core:ode") is plugins.spec("sampler", "ode")


def test_a_component_of_a_plugin_that_nobody_asked_for(monkeypatch):
    monkeypatch.delenv("FVD_PLUGINS", raising=False)
    with pytest.raises(PluginError) as caught:
        load_plugins().spec("family", "toy")
    assert str(caught.value).splitlines() == [
        "family 'toy' is not loaded: plugin toy is loaded on request only [P08]",
        "Ask for it: -p toy",
    ]


# --- a run file and a command line together ----------------------------------------------------------------------------
@pytest.mark.parametrize("only", ["", "plugins: {only: [fvd_core]}\n", "plugins: {only: [fvd_coree]}\n"])
def test_a_slip_on_the_command_line_is_not_the_run_file_s(monkeypatch, tmp_path, only):
    monkeypatch.delenv("FVD_PLUGINS", raising=False)
    path = tmp_path / "run.yaml"
    path.write_text(only + "recipe: {family: toy, method: toy}\n")
    for options in (PluginOptions(disable=("wann",)), PluginOptions(request=("toyy",))):
        with pytest.raises(PluginError, match=r"-p (no:wann|toyy) names"):
            load_run_file(path, options=options)
    problems = [problem for problem in load_run_file(path).errors if problem.key == "plugins.only"]
    assert ["fvd_coree" in problem.message for problem in problems] == ([True] if "coree" in only else [])


def test_a_misspelt_name_in_only_is_all_that_is_said(monkeypatch, tmp_path):
    """The other names are as good as they are: what they allow is not reported as missing."""
    monkeypatch.delenv("FVD_PLUGINS", raising=False)
    path = tmp_path / "run.yaml"
    path.write_text(
        "recipe: {family: toy, method: toy}\nroles: {student: {path: random}}\nplugins: {only: [toy, wna]}\n"
        "training: {output_dir: out, max_train_steps: 1, learning_rate: 1.0}\n"
    )
    (problem,) = load_run_file(path).errors
    assert problem.key == "plugins.only"
    assert "'wna'" in problem.message
    assert "'toy'" not in problem.message


def test_a_run_file_asks_for_what_it_names_unless_it_may_not(monkeypatch, tmp_path):
    monkeypatch.delenv("FVD_PLUGINS", raising=False)

    def states(text: str, **options) -> dict[str, str]:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        records = load_run_file(path, options=PluginOptions(**options)).plugins.records
        return {record.name: record.state for record in records if record.name.startswith("toy")}

    assert states("recipe: {family: toy, method: finetune}") == {"toy": "ok"}
    assert states("recipe: {family: wan, method: toy}") == {"toy": "ok"}
    assert states("recipe: {family: fvd-core:toy_noise, method: x}") == {"toy_noise": "ok"}
    assert states("recipe: {method: x}\nroles: {student: {family: toy}, teacher: {family: toy_noise}}") == {
        "toy": "ok",
        "toy_noise": "ok",
    }
    assert states("recipe: {family: wan, method: x}") == {}
    assert states("recipe: [toy]\nroles: toy") == {}
    assert states("recipe: {family: toy, method: x}", disable=("toy",)) == {"toy": "disabled"}
    assert states("recipe: {family: toy, method: x}\nplugins: {only: [fvd-wan]}") == {"toy": "disabled"}
