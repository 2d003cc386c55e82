"""`Plugins`: names to descriptors to objects, and what a person is told when that fails."""

from __future__ import annotations

import logging
from functools import partial
from types import SimpleNamespace

import pytest

import fvd
from fvd.errors import FvdError, PluginError, Problem
from fvd.plugins import load_plugins, registry
from fvd.plugins.fit import describe_fit, missing_primitives
from fvd.testing import fake_dist, installed_in

FIRST_PARTY = {"fvd-wan", "fvd-dmd2", "fvd-finetune"}

FAMILY = """
    import fvd

    @fvd.hookimpl
    def fvd_families():
        return [fvd.FamilySpec(name="{name}", target="{target}", config="{package}.config:Config", provides={{"predict"}})]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Core and what the test installs; fvd's own plugins are as good as not installed."""
    monkeypatch.delenv("FVD_PLUGINS", raising=False)
    monkeypatch.delenv("FVD_DISABLE_PLUGINS", raising=False)
    find = registry.find_candidates
    monkeypatch.setattr(registry, "find_candidates", lambda: [c for c in find() if c.distribution not in FIRST_PARTY])
    with installed_in(tmp_path):
        yield partial(fake_dist, tmp_path)


def install_family(install, distribution: str, name: str, target: str = "", **modules: str) -> None:
    package = distribution.replace("-", "_")
    plugin = distribution.partition("-")[2]
    source = FAMILY.format(name=name, package=package, target=target or f"{package}.family:Family")
    sources = {f"{package}.plugin": source} | {f"{package}.{module}": text for module, text in modules.items()}
    install(distribution, entry_points={f"{plugin}_{package[:4]}": f"{package}.plugin"}, modules=sources)


def error_of(plugins, kind: str, name: str, action: str = "spec") -> PluginError:
    with pytest.raises(PluginError) as caught:
        {"spec": plugins.spec, "load": plugins.load, "load_config": plugins.load_config}[action](kind, name)
    return caught.value


# --- names -----------------------------------------------------------------------------------------------------------
def test_two_providers_of_one_name_and_nobody_wins(install):
    install_family(install, "acme-wan", "wan", family="class Family: here = 'acme'")
    install_family(install, "bravo-wan", "wan", family="class Family: here = 'bravo'")
    plugins = load_plugins()
    assert [r.state for r in plugins.records if "wan" in r.name] == ["ok", "ok"]
    error = error_of(plugins, "family", "wan")
    assert "acme-wan and bravo-wan" in error.message
    assert "P07" in error.message
    assert "'acme-wan:wan' or 'bravo-wan:wan'" in error.cure
    assert plugins.names("family") == ["acme-wan:wan", "bravo-wan:wan"]
    assert {name: len(owners) for name, owners in plugins.ambiguous("family").items()} == {"wan": 2}
    for qualifier, here in {"acme-wan": "acme", "Bravo_WAN": "bravo", "wan_brav": "bravo"}.items():
        assert plugins.load("family", f"{qualifier}:wan").here == here
    only_one = load_plugins(disable=["acme-wan"])
    assert only_one.load("family", "wan").here == "bravo"


def test_a_qualified_name_must_be_provided_by_its_distribution(install):
    install_family(install, "acme-ltx", "ltx")
    plugins = load_plugins()
    assert plugins.spec("family", "acme-ltx:ltx") is plugins.spec("family", "ltx")
    assert "P08" in error_of(plugins, "family", "fvd-core:ltx").message


def test_a_component_that_is_not_installed(install):
    error = error_of(load_plugins(), "method", "dmd2")
    assert str(error).splitlines() == [
        "method 'dmd2' is not installed (installed methods: none) [P08]",
        "It is provided by fvd-dmd2: python -m pip install fvd-dmd2",
    ]


def test_a_misspelt_name_is_suggested_from_installed_and_known(install):
    install_family(install, "acme-ltx", "ltx")
    plugins = load_plugins()
    error = error_of(plugins, "family", "ltxx")
    assert "did you mean 'ltx'" in error.message
    assert "installed families: ltx" in error.message
    assert "did you mean 'dmd2'" in error_of(plugins, "method", "dmd").message
    assert "pip install" not in error_of(plugins, "family", "totally_unknown").cure


def test_a_command_to_install_never_comes_from_the_name(install):
    for kind, name in [("family", "evil"), ("family", "evil:wan"), ("sampler", "fvd-evil:x"), ("method", "wan")]:
        assert "pip install" not in str(error_of(load_plugins(), kind, name)), (kind, name)


@pytest.mark.parametrize(
    ("source", "options", "state", "words"),
    [
        ("import flash_attn_nowhere", {}, "broken", ["P03", "flash_attn_nowhere"]),
        ("", {"requires": ["fvd-core>=99"]}, "incompatible", ["P02", "fvd-core>=99"]),
    ],
)
def test_a_component_of_an_unusable_plugin_says_why(install, source, options, state, words):
    install("fvd_dmd2x", entry_points={"dmd2": "x_dmd2"}, modules={"x_dmd2": source}, **options)
    error = error_of(load_plugins(), "method", "dmd2")
    assert state in error.message
    assert "fvd_dmd2x 1.0" in error.message
    assert all(word in error.message for word in words)
    assert error.cure


def test_the_catalogue_leads_to_the_broken_distribution(install):
    install("FVD_DMD2", "3.0", entry_points={"distil": "x_distil"}, modules={"x_distil": "import flash_attn_nowhere"})
    error = error_of(load_plugins(), "method", "dmd2")
    assert "distil (FVD_DMD2 3.0) is broken" in error.message
    assert "flash_attn_nowhere" in error.message
    assert error_of(load_plugins(), "method", "finetune").cure.endswith("pip install fvd-finetune")


def test_a_component_of_a_disabled_plugin_says_so(install, monkeypatch):
    monkeypatch.setenv("FVD_DISABLE_PLUGINS", "ltx_acme")
    install_family(install, "acme-ltx", "ltx")
    plugins = load_plugins()
    assert "disabled by FVD_DISABLE_PLUGINS" in error_of(plugins, "family", "ltx_acme").message
    assert "disabled by FVD_DISABLE_PLUGINS" in error_of(plugins, "family", "acme-ltx:ltx").message


def test_an_unknown_kind_is_a_bug_of_the_caller(install):
    with pytest.raises(ValueError, match="unknown kind"):
        load_plugins().names("families")


# --- targets ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({}, ["no module 'acme_ltx.family'"]),
        ({"family": "import flash_attn_nowhere"}, ["needs the module 'flash_attn_nowhere'"]),
        ({"family": "class Famly: pass"}, ["has no 'Family'", "did you mean 'Famly'"]),
        ({"family": "x = {}\nx['gone']"}, ["KeyError: 'gone'", "acme_ltx.family, line 2"]),
        ({"family": "from acme_ltx import nothing_here"}, ["ImportError", "nothing_here"]),
    ],
)
def test_a_target_that_does_not_load(install, modules, words):
    install_family(install, "acme-ltx", "ltx", **modules)
    error = error_of(load_plugins(), "family", "ltx", "load")
    for word in [*words, "acme-ltx 1.0", "acme_ltx.family:Family", "P09"]:
        assert word in error.message
    assert error.cure
    assert "\n" not in error.message


def test_an_error_for_the_user_passes_through_a_target(install):
    install_family(install, "acme-ltx", "ltx", family="import fvd\nraise fvd.FvdError('no GPU', cure='Buy one.')")
    with pytest.raises(FvdError, match=r"^no GPU\nBuy one\.$"):
        load_plugins().load("family", "ltx")


def test_config_is_loaded_by_its_own_target(install):
    config = "import fvd\nclass Config(fvd.PipelineConfig): shift: float = 3"
    install_family(install, "acme-ltx", "ltx", family="1 / 0", config=config)
    assert load_plugins().load_config("family", "ltx")().shift == 3
    with pytest.raises(ValueError, match="no config"):
        load_plugins().load_config("sampler", "ode")


METHOD = """
    import fvd

    @fvd.hookimpl
    def fvd_methods():
        roles = {{"s": fvd.RoleNeeds(trainable=True)}}
        return [fvd.MethodSpec(name="m", target="x_m.plugin:run", config="x_m.plugin:{config}", roles=roles)]

    class Stranger: pass
    def run(): pass
    number = 3
"""


@pytest.mark.parametrize("config", ["Stranger", "run", "number"])
def test_a_config_of_another_class_is_refused(install, config):
    """Anything else would fail far from its cause, or let unknown keys pass."""
    install("x-m", entry_points={"m": "x_m.plugin"}, modules={"x_m.plugin": METHOD.format(config=config)})
    error = error_of(load_plugins(), "method", "m", "load_config")
    assert f"x_m.plugin:{config} is not a subclass of fvd.MethodConfig" in error.message
    for word in ("x-m 1.0", "P09"):
        assert word in error.message
    install_family(install, "acme-ltx", "ltx", config="import fvd\nclass Config(fvd.MethodConfig): pass")
    assert "not a subclass of fvd.PipelineConfig" in error_of(load_plugins(), "family", "ltx", "load_config").message


def test_a_target_that_cannot_be_called_is_refused(install):
    install_family(install, "acme-ltx", "ltx", family="Family = 3")
    error = error_of(load_plugins(), "family", "ltx", "load")
    assert "acme_ltx.family:Family is not callable" in error.message
    assert "acme-ltx 1.0" in error.message


def test_a_descriptor_from_elsewhere_has_no_owner(install):
    plugins = load_plugins()
    ode = plugins.spec("sampler", "ode")
    twin = fvd.SamplerSpec(name=ode.name, target=ode.target, summary=ode.summary)
    assert twin == ode
    assert plugins.owner(ode).name == "core"
    with pytest.raises(ValueError, match="not a descriptor of an installed plugin"):
        plugins.owner(twin)


# --- hooks -----------------------------------------------------------------------------------------------------------
HOOKS = """
    import fvd

    @fvd.hookimpl
    def fvd_methods():
        roles = {{"student": fvd.RoleNeeds(trainable=True)}}
        return [fvd.MethodSpec(name="{name}", target="x_{name}:run", config="x_{name}:Config", roles=roles)]

    @fvd.hookimpl
    def fvd_run_start(run):
        run.append("{name}")
        {failure}

    @fvd.hookimpl
    def fvd_check_config(ctx):
        {failure}
        return [fvd.Problem(message="{name} saw " + ctx.word)]
"""


def install_hooks(install, name: str, failure: str = "pass") -> None:
    install(f"x-{name}", entry_points={name: f"x_{name}"}, modules={f"x_{name}": HOOKS.format(name=name, failure=failure)})


def test_notifications_reach_everybody_in_order_and_a_failure_is_logged_once(install, caplog):
    install_hooks(install, "a")
    install_hooks(install, "b", "raise RuntimeError('boom')")
    install_hooks(install, "c")
    plugins, seen = load_plugins(), []
    with caplog.at_level(logging.ERROR, logger="fvd.plugins"):
        plugins.notify("fvd_run_start", run=seen)
        plugins.notify("fvd_run_start", run=seen)
    assert seen == ["a", "b", "c"] * 2
    (entry,) = caplog.records
    assert "b (x-b 1.0)" in entry.getMessage()
    assert "fvd_run_start" in entry.getMessage()
    assert "RuntimeError: boom" in caplog.text
    with pytest.raises(ValueError, match="unknown hook"):
        plugins.notify("fvd_run_begin", run=seen)


def check_context(plugins, used: str) -> SimpleNamespace:
    """A run that uses the method ``used`` on the family ``ltx``, and the tracker ``diary`` where there is one."""
    trackers = [name for name in plugins.names("tracker") if name == "diary"]
    run = SimpleNamespace(
        training=SimpleNamespace(trackers=trackers, validator=None), pipeline_config=SimpleNamespace(sampler_kind=None)
    )
    families = {"student": plugins.spec("family", "ltx")}
    return SimpleNamespace(word="it", run=run, method=plugins.spec("method", used), families=families)


@pytest.mark.parametrize(("used", "severity"), [("b", "error"), ("a", "warning")])
def test_checks_are_collected_and_a_failing_one_is_a_problem_of_its_plugin(install, used, severity):
    """It stops only the runs that use the plugin."""
    install_family(install, "acme-ltx", "ltx")
    install_hooks(install, "a")
    install_hooks(install, "b", "raise SystemExit('boom')")
    install_hooks(install, "c")
    plugins = load_plugins()
    found = plugins.check_config(check_context(plugins, used))
    assert [problem.message.partition(" (")[0] for problem in found if "saw" in problem.message] == ["a saw it", "c saw it"]
    (failed,) = [problem for problem in found if "saw" not in problem.message]
    assert isinstance(failed, Problem)
    assert failed.severity == severity
    assert "b (x-b 1.0)" in failed.message
    assert "boom" in failed.message


def test_an_error_of_a_plugin_that_the_run_does_not_use_is_a_warning_that_names_it(install):
    install_family(install, "acme-ltx", "ltx")
    for name in "ab":
        install_hooks(install, name)
    tracker = """
        import fvd

        @fvd.hookimpl
        def fvd_trackers(): return [fvd.TrackerSpec(name="diary", target="a:b")]

        @fvd.hookimpl
        def fvd_check_config(ctx): return [fvd.Problem(message="no diary")]
    """
    install("x-diary", entry_points={"notes": "x_diary"}, modules={"x_diary": tracker})
    plugins = load_plugins()
    found = [(problem.message, problem.severity) for problem in plugins.check_config(check_context(plugins, "a"))]
    assert found == [
        ("a saw it", "error"),
        ("b saw it (says plugin b (x-b 1.0), which this run does not use)", "warning"),
        ("no diary", "error"),
    ]


@pytest.mark.parametrize("wrong", [{"message": 3}, {"message": "x", "line": "3"}, {"message": "x", "severity": "fatal"}])
def test_a_problem_that_cannot_be_shown_cannot_be_made(wrong):
    with pytest.raises((TypeError, ValueError), match=r"^Problem: "):
        Problem(**wrong)


def test_names_of_core_are_cores(install):
    source = """
        import fvd

        @fvd.hookimpl
        def fvd_samplers(): return [fvd.SamplerSpec(name="ode", target="x_ode.loop:sample")]

        @fvd.hookimpl
        def fvd_validators(): return [fvd.ValidatorSpec(name="video", target="x_ode.validator:Video")]

        @fvd.hookimpl
        def fvd_families():
            return [fvd.FamilySpec(name="ltx", target="a:b", provides={"predict"})]
    """
    install("acme-x", entry_points={"ode_x": "x_ode"}, modules={"x_ode": source})
    install_family(install, "bravo-ltx", "other")
    plugins = load_plugins()
    core, acme = plugins.spec("sampler", "ode"), plugins.spec("sampler", "acme-x:ode")
    assert plugins.owner(core).name == "core"
    assert plugins.owner(acme).distribution == "acme-x"
    assert plugins.names("sampler") == ["acme-x:ode", "ddim", "ode", "sde"]
    assert [plugins.name_of(spec) for spec in (core, acme)] == ["ode", "acme-x:ode"]
    assert plugins.ambiguous("sampler") == {}
    assert plugins.behind_core("sampler") == [acme]
    # A family means its own distribution's first.
    ltx, other = plugins.spec("family", "ltx"), plugins.spec("family", "other")
    assert plugins.validator_of(ltx) == "acme-x:video"
    assert plugins.dataset_kind_of(ltx) == "parquet"
    assert plugins.validator_of(other) == "video"


@pytest.mark.parametrize("toy", ["toy", "Toy"])
def test_a_stranger_takes_no_name_of_cores_toys(install, toy):
    install("acme-toy", entry_points={toy: "acme_toy"}, modules={"acme_toy": "import fvd"})
    for plugins in (load_plugins(), load_plugins(request=["toy"]), load_plugins(mentioned=["toy"])):
        (stranger,) = [record for record in plugins.records if record.distribution == "acme-toy"]
        assert (stranger.state, stranger.code) == ("conflict", "P06")
        assert "fvd-core" not in stranger.cure
    assert plugins.owner(plugins.spec("family", "toy")).distribution == "fvd-core"


LAZY = """
    def __getattr__(name):
        {body}
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise RuntimeError('no GPU')", ["RuntimeError: no GPU", "acme_ltx.family, line 3"]),
        ("import flash_attn_nowhere", ["needs the module 'flash_attn_nowhere'"]),
        ("raise BaseException", ["BaseException"]),
        ("raise AttributeError(name)", ["has no 'Family'"]),
        ("class Odd(Exception):\n            def __str__(self): raise self\n        raise Odd", ["Odd: (its text cannot"]),
    ],
)
def test_a_target_that_is_made_when_it_is_asked_for(install, body, words):
    install_family(install, "acme-ltx", "ltx", family=LAZY.format(body=body))
    error = error_of(load_plugins(), "family", "ltx", "load")
    for word in [*words, "acme-ltx 1.0", "P09"]:
        assert word in error.message


@pytest.mark.parametrize("returned", ["['a text']", "'text'", "7", "None"])
def test_a_check_that_returns_something_else_is_a_problem(install, returned):
    install_family(install, "acme-ltx", "ltx")
    install_hooks(install, "good")
    source = f"import fvd\n@fvd.hookimpl\ndef fvd_check_config(ctx): return {returned}"
    install("x-odd", entry_points={"odd": "x_odd"}, modules={"x_odd": source})
    plugins = load_plugins()
    found = [p for p in plugins.check_config(check_context(plugins, "good")) if p.message != "good saw it"]
    assert ["odd (x-odd 1.0)" in problem.message for problem in found] == ([] if returned == "None" else [True])


# --- fit -------------------------------------------------------------------------------------------------------------
def test_fit_is_needs_within_provides_by_role():
    family = fvd.FamilySpec(name="f", target="a:b", config="a:c", provides={"prepare_batch", "predict"})
    method = fvd.MethodSpec(
        name="m",
        target="a:b",
        config="a:c",
        needs={"prepare_batch", "add_noise"},
        roles={
            "student": fvd.RoleNeeds(trainable=True, needs={"predict"}),
            "teacher": fvd.RoleNeeds(trainable=False, needs={"predict_x0", "add_noise"}),
        },
    )
    assert missing_primitives(method, family) == {"": {"add_noise"}, "teacher": {"predict_x0", "add_noise"}}
    assert describe_fit(method, family) == "add_noise, predict_x0 (teacher)"
    whole = fvd.FamilySpec(
        name="f", target="a:b", config="a:c", provides={"prepare_batch", "predict", "predict_x0", "add_noise"}
    )
    assert missing_primitives(method, whole) == {}
    assert describe_fit(method, whole) == "✓"
