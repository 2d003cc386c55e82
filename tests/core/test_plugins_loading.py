"""Every state and code of a plugin, on distributions that really lie on sys.path. Each failure stays its own."""

from __future__ import annotations

import inspect
import re
import sys
from functools import partial
from importlib import import_module
from types import ModuleType

import pytest

import fvd
from fvd import hookspecs
from fvd.plugins import PluginRecord, Plugins, load_plugins
from fvd.plugins.discovery import Candidate, Unusable, check_core_version
from fvd.plugins.hooks import HOOK_RETURNS
from fvd.plugins.registry import KINDS
from fvd.plugins.weight import heavy_among
from fvd.testing import fake_dist, installed_in

GOOD = """
    import fvd

    @fvd.hookimpl
    def fvd_samplers():
        return [fvd.SamplerSpec(name="{name}", target="{package}.loop:sample", summary="a loop")]
"""


def good(package: str, name: str) -> str:
    return GOOD.format(package=package, name=name)


@pytest.fixture
def install(tmp_path, monkeypatch):
    monkeypatch.delenv("FVD_PLUGINS", raising=False)
    monkeypatch.delenv("FVD_DISABLE_PLUGINS", raising=False)
    with installed_in(tmp_path):
        yield partial(fake_dist, tmp_path)


def record_of(plugins: Plugins, name: str) -> PluginRecord:
    (record,) = [record for record in plugins.records if record.name == name]
    return record


def test_core_goes_through_the_same_loop():
    core = record_of(load_plugins(), "core")
    assert (core.distribution, core.version, core.state, core.code) == ("fvd-core", fvd.__version__, "ok", "")
    assert {"sampler:ode", "sampler:sde", "validator:video", "dataset_kind:parquet"} <= set(core.provides)


def test_a_plugin_of_twelve_lines(install):
    install("fvd-tiny", "0.3", entry_points={"tiny": "fvd_tiny"}, modules={"fvd_tiny": good("fvd_tiny", "tiny_loop")})
    plugins = load_plugins()
    record = record_of(plugins, "tiny")
    assert (record.state, record.version, record.provides) == ("ok", "0.3", ("sampler:tiny_loop",))
    assert "tiny_loop" in plugins.names("sampler")
    assert plugins.owner(plugins.spec("sampler", "tiny_loop")) is record


def test_order_is_by_distribution_and_name_however_they_lie_on_disk(install):
    for name in ("zeta", "alpha", "mid"):
        install(f"x-{name}", entry_points={name: f"x_{name}"}, modules={f"x_{name}": good("x", name)})
    install("x-alpha2", entry_points={"b": "x_b", "a": "x_a"}, modules={"x_a": good("x", "aa"), "x_b": good("x", "bb")})
    keys = [(record.distribution, record.name) for record in load_plugins().records]
    assert keys == sorted(keys)
    assert {key for key in keys if key[0].startswith("x-")} == {
        ("x-zeta", "zeta"), ("x-alpha", "alpha"), ("x-mid", "mid"), ("x-alpha2", "a"), ("x-alpha2", "b"),
    }  # fmt: skip


BROKEN = {
    # name: (entry point value, module source, code, words in the reason)
    "attr": ("x_attr:plugin", "", "P01", ["x_attr:plugin", "not a module path"]),
    "nonsense": ("not a valid::value", "", "P01", ["not a module path"]),
    "absent": ("x_nowhere.plugin", None, "P03", ["'x_nowhere' is not there"]),
    "nested": ("x_nested", "import flash_attn_nowhere", "P03", ["missing dependency 'flash_attn_nowhere'", "line 1"]),
    "sibling": ("x_sibling", "import x_sibling.helper", "P03", ["x_sibling.helper"]),
    "raises": ("x_raises", "x = 1\n1 / 0", "P03", ["ZeroDivisionError", "x_raises, line 2"]),
    "syntax": ("x_syntax", "def f(:", "P03", ["SyntaxError"]),
    "exits": ("x_exits", "import sys; sys.exit(3)", "P03", ["SystemExit: 3"]),
    "newer": ("x_newer", "import fvd\nfvd.FrobnicatorSpec", "P03", ["FrobnicatorSpec"]),
    "typo": (
        "x_typo",
        "import fvd\n@fvd.hookimpl\ndef fvd_familys(): return []",
        "P04",
        ["unknown hook 'fvd_familys'", "did you mean 'fvd_families'"],
    ),
    "prefix": ("x_prefix", "import fvd\n@fvd.hookimpl\ndef families(): return []", "P04", ["unknown hook 'families'"]),
    "specname": (
        "x_specname",
        "import fvd\n@fvd.hookimpl(specname='fvd_method')\ndef fvd_more(): return []",
        "P04",
        ["'fvd_method'", "did you mean 'fvd_methods'"],
    ),
    "forgot": ("x_forgot", "def fvd_families(): return []", "P04", ["fvd_families() is not marked with @fvd.hookimpl"]),
    "kwonly": (
        "x_kwonly",
        "import fvd\n@fvd.hookimpl\ndef fvd_step_end(*, run): pass",
        "P04",
        ["fvd_step_end", "'run' must not be keyword-only"],
    ),
    "kwargs": ("x_kwargs", "import fvd\n@fvd.hookimpl\ndef fvd_run_start(**kw): pass", "P04", ["**kw"]),
    "varargs": ("x_varargs", "import fvd\n@fvd.hookimpl\ndef fvd_run_start(*a): pass", "P04", ["*a"]),
    "unasked": (
        "x_unasked",
        "import fvd\n@fvd.hookimpl\ndef fvd_run_start(run, loader): pass",
        "P04",
        ["unknown argument 'loader'", "offers: run"],
    ),
    "asynchronous": ("x_asynchronous", "import fvd\n@fvd.hookimpl\nasync def fvd_families(): return []", "P04", ["async"]),
    "text": (
        "x_text",
        "import fvd\n@fvd.hookimpl\ndef fvd_families(): return 'wan'",
        "P05",
        ["fvd_families() must return a list of FamilySpec, got str"],
    ),
    "emptytext": ("x_emptytext", "import fvd\n@fvd.hookimpl\ndef fvd_families(): return ''", "P05", ["got str"]),
    "items": ("x_items", "import fvd\n@fvd.hookimpl\ndef fvd_methods(): return ['dmd2']", "P05", ["MethodSpec, got str in"]),
    "other": (
        "x_other",
        "import fvd\n@fvd.hookimpl\ndef fvd_methods(): return [fvd.SamplerSpec(name='s', target='a:b')]",
        "P05",
        ["MethodSpec, got SamplerSpec"],
    ),
    "nothing": ("x_nothing", "import fvd\n@fvd.hookimpl\ndef fvd_samplers(): pass", "P05", ["got None"]),
    "lazy": ("x_lazy", "import fvd\n@fvd.hookimpl\ndef fvd_samplers(): yield 1", "P05", ["got generator"]),
    "bare": (
        "x_bare",
        "import fvd\n@fvd.hookimpl\ndef fvd_samplers(): return fvd.SamplerSpec(name='s', target='a:b')",
        "P05",
        ["got SamplerSpec"],
    ),
    "badspec": (
        "x_badspec",
        "import fvd\n\n@fvd.hookimpl\ndef fvd_samplers():\n    return [fvd.SamplerSpec(name='S', target='a:b')]",
        "P05",
        ["sampler name 'S'", "x_badspec, line 5"],
    ),
    "newfield": (
        "x_newfield",
        "import fvd\n@fvd.hookimpl\ndef fvd_samplers(): return [fvd.SamplerSpec(name='s', target='a:b', speed=9)]",
        "P05",
        ["speed"],
    ),
    "twice": (
        "x_twice",
        "import fvd\n@fvd.hookimpl\ndef fvd_samplers(): return [fvd.SamplerSpec(name='s', target='a:b')] * 2",
        "P05",
        ["sampler 's' more than once"],
    ),
    "hookimport": (
        "x_hookimport",
        "import fvd\n@fvd.hookimpl\ndef fvd_samplers(): import no_such_thing",
        "P03",
        ["no_such_thing"],
    ),
    "hookexit": ("x_hookexit", "import fvd\n@fvd.hookimpl\ndef fvd_samplers(): raise SystemExit(1)", "P05", ["SystemExit"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_says_why_and_breaks_nothing_else(install, name):
    value, source, code, words = BROKEN[name]
    modules = {} if source is None else {f"x_{name}": source}
    install(f"x-{name}", "2.1", entry_points={name: value}, modules=modules)
    install("y-good", entry_points={"good": "y_good"}, modules={"y_good": good("y_good", "good_loop")})
    plugins = load_plugins()
    record = record_of(plugins, name)
    assert (record.state, record.code, record.distribution, record.version) == ("broken", code, f"x-{name}", "2.1")
    for word in words:
        assert word in record.reason
    assert "\n" not in record.reason
    assert record.cure
    assert record.provides == ()
    assert record_of(plugins, "good").state == "ok"
    assert record_of(plugins, "core").state == "ok"
    assert plugins.spec("sampler", "good_loop").name == "good_loop"


@pytest.mark.parametrize(
    ("requires", "missing", "declared"),
    [
        (["Nowhere.Kernels>=2"], "nowhere_kernels.ops", True),
        (["x-needs-more"], "nowhere_kernels", False),
        (["nowhere-kernels; extra == 'fast'"], "nowhere_kernels", False),  # `pip install x-needs` does not bring it
        (["x-more[fast]"], "nowhere_kernels", True),
        ([], "nowhere_kernels", False),
    ],
)
def test_installing_again_is_a_cure_for_what_is_declared(install, requires, missing, declared):
    install("x-more", requires=["nowhere-kernels>=1; extra == 'fast'"])
    install("x-needs", entry_points={"needs": "x_needs"}, modules={"x_needs": f"import {missing}"}, requires=requires)
    cure = record_of(load_plugins(), "needs").cure
    assert ("pip install x-needs " in cure) == declared
    if not declared:
        assert cure.startswith("Install what provides the module 'nowhere_kernels', and tell the authors of x-needs")


def test_a_broken_plugin_takes_no_part_in_notifications(install):
    source = "import fvd\n@fvd.hookimpl\ndef fvd_samplers(): return 3\n@fvd.hookimpl\ndef fvd_run_start(run): run.append('x')"
    install("x-half", entry_points={"half": "x_half"}, modules={"x_half": source})
    plugins, seen = load_plugins(), []
    assert record_of(plugins, "half").state == "broken"
    plugins.notify("fvd_run_start", run=seen)
    assert seen == []


def test_keyboard_interrupt_is_not_a_broken_plugin(install):
    install("x-stop", entry_points={"stop": "x_stop"}, modules={"x_stop": "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        load_plugins()


def test_one_hook_may_be_split_over_functions(install):
    source = """
        import fvd

        @fvd.hookimpl
        def fvd_samplers():
            return [fvd.SamplerSpec(name="one", target="a:b")]

        @fvd.hookimpl(specname="fvd_samplers")
        def fvd_more():
            return (fvd.SamplerSpec(name="two", target="a:b"),)
    """
    install("x-split", entry_points={"split": "x_split"}, modules={"x_split": source})
    assert set(record_of(load_plugins(), "split").provides) == {"sampler:one", "sampler:two"}


def test_lazy_module_attributes_are_left_alone(install):
    source = """
        import fvd

        __all__ = ["Heavy"]

        def __getattr__(name):
            raise RuntimeError(f"evaluated {name}")

        def __dir__():
            return ["Heavy", "fvd_families", "fvd_samplers"]

        @fvd.hookimpl
        def fvd_samplers():
            return [fvd.SamplerSpec(name="quiet", target="a:b")]
    """
    install("x-pep562", entry_points={"pep562": "x_pep562"}, modules={"x_pep562": source})
    record = record_of(load_plugins(), "pep562")
    assert (record.state, record.reason) == ("ok", "")


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("fvd-core>=0.1,<1", "ok"),
        ("FVD_Core (>=0.1)", "ok"),
        ("fvd.core<0.1", "incompatible"),
        ("fvd-core>=7; extra == 'future'", "ok"),
        ("fvd-core>=7; python_version > '3'", "incompatible"),
        ("fvd-core >< 3", "incompatible"),
        ("fvd-core-extras>=7", "ok"),
    ],
)
def test_the_requirement_on_core_is_checked_before_import(install, line, state):
    install("x-required", "0.9", entry_points={"required": "x_required"}, modules={"x_required": ""}, requires=[line])
    record = record_of(load_plugins(), "required")
    assert record.state == state
    assert ("x_required" in sys.modules) == (state == "ok")
    if state == "incompatible":
        assert record.code == "P02"
        assert "x-required" in record.cure


def test_incompatible_names_both_versions():
    candidate = Candidate(name="old", module="old", distribution="fvd-old", version="0.9", requires=("fvd-core<1.3,>=1.1",))
    with pytest.raises(Unusable) as caught:
        check_core_version(candidate, "1.4.0")
    assert caught.value.reason == "needs fvd-core<1.3,>=1.1, have 1.4.0"
    check_core_version(candidate, "1.2.0")
    check_core_version(candidate, "1.2.0.dev3")  # somebody who runs a development version means it


def test_two_distributions_claim_one_name_and_nobody_wins(install):
    install("acme-same", entry_points={"same": "acme_same"}, modules={"acme_same": good("acme_same", "s1")})
    install("bravo-same", entry_points={"Same": "bravo_same"}, modules={"bravo_same": good("bravo_same", "s2")})
    records = [record for record in load_plugins().records if record.name.lower() == "same"]
    assert [(record.state, record.code) for record in records] == [("conflict", "P06")] * 2
    assert all("acme-same and bravo-same" in record.reason for record in records)
    assert not {"acme_same", "bravo_same"} & sys.modules.keys()
    # disabling one of them by distribution settles it
    settled = load_plugins(disable=["acme-same"])
    assert [record.state for record in settled.records if record.name.lower() == "same"] == ["disabled", "ok"]


def test_two_names_for_one_module_are_a_conflict(install):
    install("acme-fork", entry_points={"fork": "shared_module"}, modules={"shared_module": good("shared_module", "loop")})
    install("bravo-orig", entry_points={"orig": "shared_module"})
    plugins = load_plugins()
    assert {record_of(plugins, name).state for name in ("fork", "orig")} == {"conflict"}


def test_nobody_takes_the_name_of_core(install):
    install("acme-core", entry_points={"core": "acme_core"}, modules={"acme_core": good("acme_core", "s1")})
    states = {record.distribution: record.state for record in load_plugins().records if record.name == "core"}
    assert states == {"acme-core": "conflict", "fvd-core": "ok"}


@pytest.mark.parametrize("damage", ["missing", "nameless", "empty"])
def test_damaged_metadata_is_a_state(install, tmp_path, damage):
    install("x-damaged", entry_points={"damaged": "x_damaged"}, modules={"x_damaged": ""})
    metadata = tmp_path / "x_damaged-1.0.dist-info" / "METADATA"
    if damage == "missing":
        metadata.unlink()
    else:
        metadata.write_text("Metadata-Version: 2.1\nVersion: 1.0\n" if damage == "nameless" else "")
    record = record_of(load_plugins(), "damaged")
    assert (record.state, record.code) == ("broken", "P01")
    assert "metadata" in record.reason


def test_an_older_copy_later_on_the_path_is_shadowed(install, tmp_path):
    install("x-copy", "2.0", entry_points={"copy": "x_copy"}, modules={"x_copy": good("x_copy", "loop")})
    older = tmp_path / "older"
    fake_dist(older, "x-copy", "1.0", entry_points={"copy": "x_copy"}, modules={"x_copy": "1 / 0"})
    sys.path.append(str(older))
    try:
        record = record_of(load_plugins(), "copy")
    finally:
        sys.path.remove(str(older))
    assert (record.version, record.state) == ("2.0", "ok")


def test_what_a_plugin_prints_goes_to_stderr(install, capsys):
    install("x-chatty", entry_points={"chatty": "x_chatty"}, modules={"x_chatty": "print('hello')"})
    load_plugins()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


HEAVY = {
    # how the light module comes by jax (a stand-in, which costs nothing)
    "itself": {"x_heavy.plugin": "import jax"},
    "a part of it": {"x_heavy.plugin": "import jax.parts"},
    "a class": {"x_heavy.plugin": "from jax import Array"},
    "a function": {"x_heavy.plugin": "from jax import jit"},
    "an object": {"x_heavy.plugin": "from jax import devices"},
    "through its package": {"x_heavy.plugin": "", "x_heavy": "import jax"},
    "through a module of its own": {"x_heavy.plugin": "from x_heavy import family", "x_heavy.family": "from jax import Array"},
    "through a base class": {
        "x_heavy.plugin": "from x_heavy.family import F",
        "x_heavy.family": "from jax import Array\nclass F(Array): pass",
    },
    "in a hook": {"x_heavy.plugin": "import fvd\n@fvd.hookimpl\ndef fvd_samplers():\n    import jax\n    return []"},
}
JAX = {"jax": "class Array: pass\ndef jit(function): return function\ndevices = Array()", "jax.parts": ""}


@pytest.mark.parametrize(
    ("how", "loaded_before"),
    [(how, loaded) for how in HEAVY for loaded in (False, True) if not (loaded and how == "in a hook")],  # leaves no trace
)
def test_a_heavy_import_makes_a_plugin_slow(install, how, loaded_before):
    """Whether or not something else has loaded it: the next command pays in any case."""
    sampler = good("x_heavy", "heavy_loop").replace("\n    ", "\n")
    modules = HEAVY[how] | JAX
    if how != "in a hook":
        modules["x_heavy.plugin"] += sampler
    install("x-heavy", entry_points={"heavy": "x_heavy.plugin"}, modules=modules)
    if loaded_before:
        import_module("jax")
    plugins = load_plugins()
    record = record_of(plugins, "heavy")
    assert (record.state, record.code, record.usable) == ("slow", "W01", True)
    assert re.fullmatch(r"loads jax on import \(\d+ ms\), and every command pays for it", record.reason)
    assert "x_heavy.plugin" in record.cure
    if how != "in a hook":
        assert record.provides == ("sampler:heavy_loop",)
        assert plugins.spec("sampler", "heavy_loop").name == "heavy_loop"
    assert record_of(load_plugins(), "heavy") == record


@pytest.mark.parametrize("source", ["from numpy import array", "from numpy import sin", "from numpy.random import rand"])
def test_what_is_written_in_c_shows_too(install, source):
    """A builtin, an object, a bound method; something else has loaded numpy already."""
    import_module("numpy.random")
    sampler = good("x_heavy", "heavy_loop").replace("\n    ", "\n")
    install("x-heavy", entry_points={"heavy": "x_heavy"}, modules={"x_heavy": source + sampler})
    record = record_of(load_plugins(), "heavy")
    assert (record.state, record.code) == ("slow", "W01")
    assert record.reason.startswith("loads numpy on import")


def test_looking_for_heavy_modules_asks_for_no_lazy_attribute(monkeypatch):
    class Lazy:
        def __getattribute__(self, name: str) -> object:
            raise AssertionError(f"asked for {name}")

    module = ModuleType("x_lazy")
    vars(module).update(lazy=Lazy(), lazy_class=type("LazyClass", (Lazy,), {}))
    monkeypatch.setitem(sys.modules, "x_lazy", module)
    assert heavy_among({"x_lazy"}) == set()


def test_a_light_plugin_is_not_slow_because_another_is(install):
    install("x-heavy", entry_points={"heavy": "x_heavy"}, modules={"x_heavy": "import jax", **JAX})
    install("x-light", entry_points={"light": "x_light"}, modules={"x_light": good("x_light", "light_loop")})
    plugins = load_plugins()
    assert {record_of(plugins, name).state for name in ("heavy", "light")} == {"slow", "ok"}
    assert record_of(plugins, "light").state == "ok"


def test_one_module_may_be_named_like_a_heavy_one(install):
    """`x_heavy.numpy` is not numpy."""
    modules = {"x_own.plugin": "from x_own import numpy", "x_own.numpy": "class Array: pass"}
    install("x-own", entry_points={"own": "x_own.plugin"}, modules=modules)
    assert record_of(load_plugins(), "own").state == "ok"


def test_a_lazy_attribute_of_one_plugin_does_not_disturb_another(install):
    """Each plugin is asked for its own hooks alone."""
    source = "import fvd\ndef __getattr__(name): raise RuntimeError(f'evaluated {name}')\n"
    install("a-lazy", entry_points={"lazy": "a_lazy"}, modules={"a_lazy": source})
    install("b-good", entry_points={"good": "b_good"}, modules={"b_good": good("b_good", "b_loop")})
    plugins = load_plugins()
    assert {record_of(plugins, name).state for name in ("lazy", "good")} == {"ok"}
    assert plugins.spec("sampler", "b_loop").name == "b_loop"


def test_a_wrapper_around_a_hook_of_its_own(install):
    source = """
        import fvd

        @fvd.hookimpl
        def fvd_samplers():
            return [fvd.SamplerSpec(name="one", target="a:b")]

        @fvd.hookimpl(wrapper=True, specname="fvd_samplers")
        def fvd_around():
            (found,) = yield
            return [[*found, fvd.SamplerSpec(name="two", target="a:b")]]
    """
    install("x-wrap", entry_points={"wrap": "x_wrap"}, modules={"x_wrap": source})
    assert set(record_of(load_plugins(), "wrap").provides) == {"sampler:one", "sampler:two"}


def test_each_call_has_its_own_state(install):
    install("x-again", entry_points={"again": "x_again"}, modules={"x_again": good("x_again", "loop")})
    first, second = load_plugins(), load_plugins()
    assert first.records == second.records
    assert "loop" not in load_plugins(disable=["again"]).names("sampler")
    assert "loop" in first.names("sampler")


def test_every_descriptor_hook_has_a_type_and_a_kind():
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("fvd_")}
    descriptor_hooks = [name for name, hook in hooks.items() if not inspect.signature(hook).parameters]
    assert list(HOOK_RETURNS) == descriptor_hooks
    assert len(set(KINDS)) == len(descriptor_hooks) == 7
