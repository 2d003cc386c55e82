"""The conformance kit itself: what `run` reports, what the command prints, and the pytest classes."""

from __future__ import annotations

import json
import re
import textwrap

import pytest

import fvd
from fvd.cli.main import main
from fvd.errors import FvdError, PluginError
from fvd.plugins import PluginOptions
from fvd.testing import FamilyConformance, MethodConformance, SamplerConformance, fake_dist, installed_in, loaded_modules
from fvd.testing.conformance import CHECKS, KIT_VERSION, load_for_check, run
from fvd.testing.conformance.table import checks_of

PLUGIN = """
    import fvd

    KNOWN = {known}

    @fvd.hookimpl
    def fvd_samplers():
        return [
            fvd.SamplerSpec(name="loop", target="acme_loop.loop:sample", summary="a loop", expected_failures=KNOWN),
            fvd.SamplerSpec(name="second", target="acme_loop.loop:second", summary="another"),
        ]
"""
LOOP = """
    from fvd.samplers.ode import sample_ode

    def sample(model, latents, *, scheduler, timesteps, generators):
        print("one step after the other")
        {step}
        return sample_ode(model, latents, scheduler=scheduler, timesteps=timesteps, generators=generators)

    second = sample
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install(step="raise …", known={"B301": "reason"})``: a plugin with two samplers."""
    for variable in ("FVD_PLUGINS", "FVD_DISABLE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    site = tmp_path / "site"

    def write(step: str = "pass", known: dict[str, str] | None = None) -> None:
        modules = {"acme_loop.plugin": PLUGIN.format(known=known or {}), "acme_loop.loop": LOOP.format(step=step)}
        requires = [f"fvd-core>={fvd.__version__},<1"]
        fake_dist(site, "acme-loop", "0.2", entry_points={"loops": "acme_loop.plugin"}, modules=modules, requires=requires)

    with installed_in(site):
        yield write


def statuses(report) -> dict[str, str]:
    return {f"{result.component} {result.id}": result.status for result in report.results}


# --- the table ---
def test_every_check_has_one_id_one_name_and_a_function():
    assert len({check.id for check in CHECKS}) == len({check.test_name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert re.fullmatch(r"(S|C|B[1-5])\d\d", check.id)
        assert check.function.__module__.startswith("fvd.testing.conformance.")
        assert set(check.needs) <= {other.id for other in CHECKS}
        assert f"{check.id}" in check.test_name


def test_the_kit_is_light():
    loaded = loaded_modules("import fvd.testing, fvd.testing.conformance; fvd.testing.FamilyConformance")
    assert not {name.partition(".")[0] for name in loaded} & {"torch", "numpy", "pytest", "pydantic", "yaml"}


# --- run ---
def test_a_plugin_and_one_component(install):
    install()
    whole = run(load_for_check("loops"), "loops")
    assert whole.ok
    assert (whole.plugin, whole.distribution, whole.version) == ("loops", "acme-loop", "0.2")
    assert {result.component for result in whole.results} == {"plugin", "sampler:loop", "sampler:second"}
    for name in ("second", "acme-loop:second", "loops:second", "sampler:second"):
        one = run(load_for_check(name), name, only=["S01", "B301"])
        assert statuses(one) == {"plugin S01": "passed", "sampler:second B301": "passed"}
    assert run(load_for_check("Acme_Loop"), "Acme_Loop", only=["S01"]).plugin == "loops"


def test_failures_say_what_and_where(install):
    install("latents[5, 5]")
    report = run(load_for_check("loop"), "loop", only=["B301", "B302"])
    assert not report.ok
    failed, skipped = report.results
    assert (failed.status, skipped.status, skipped.message) == ("failed", "skipped", "B301 must pass first")
    assert re.fullmatch(r"IndexError: .* \(acme_loop\.loop, line 6\)", failed.message)
    assert failed.output == "one step after the other\n"
    assert report.summary == "1 failed, 1 skipped"


@pytest.mark.parametrize("step", ["raise SystemExit(3)", "import sys; sys.exit('enough')", "assert False"])
def test_a_plugin_cannot_end_the_runner(install, step):
    install(step)
    (result,) = run(load_for_check("loop"), "loop", only=["B301"]).results
    assert result.status == "failed"
    assert result.message.startswith(("SystemExit", "AssertionError"))


def test_expected_failures_are_strict(install):
    install("raise ValueError('no')", {"B301": "no such loop yet"})
    report = run(load_for_check("loop"), "loop", only=["B301"])
    (result,) = report.results
    assert report.ok
    assert (result.status, result.message) == ("expected", "no such loop yet (ValueError: no (acme_loop.loop, line 6))")
    assert report.summary == "1 expected failure"
    assert run(load_for_check("second"), "second", only=["B301"]).results[0].status == "failed"


def test_an_expected_failure_that_passes_is_a_failure(install):
    install(known={"B301": "no such loop yet", "S01": "no summary"})
    report = run(load_for_check("loop"), "loop", only=["S01", "B301"])
    assert not report.ok
    assert {result.status for result in report.results} == {"unexpected pass"}
    assert "remove it from expected_failures (no such loop yet)" in report.results[-1].message
    assert report.summary == "2 passed unexpectedly"


def test_a_broken_plugin_has_a_report(install, tmp_path):
    fake_dist(tmp_path / "site", "acme-torn", entry_points={"torn": "acme_torn"}, modules={"acme_torn": "import nowhere"})
    report = run(load_for_check("torn"), "torn")
    assert {result.component for result in report.results} == {"plugin"}
    messages = {result.id: result.message for result in report.results if result.status == "failed"}
    assert "missing dependency 'nowhere'" in messages["S04"]


def test_unknown_names_and_ids(install):
    install()
    plugins = load_for_check()
    with pytest.raises(PluginError, match=r"no plugin and no component is called 'lop' \(did you mean 'loop'\?\)"):
        run(plugins, "lop")
    with pytest.raises(FvdError, match="there is no check 'B999'"):
        run(plugins, "loop", only=["B999"])
    with pytest.raises(FvdError, match=r"missing: toy \(not loaded\), toy_noise \(not loaded\)"):
        run(PluginOptions().load(), "loop")


def test_an_allow_list_without_the_toys(install, monkeypatch, capsys):
    install()
    monkeypatch.setenv("FVD_PLUGINS", "acme-loop")
    assert main(["plugins", "check", "loop"]) == 1
    said = capsys.readouterr().err
    assert "missing: toy (disabled: not among FVD_PLUGINS), toy_noise (disabled" in said
    assert "To have it, add it to FVD_PLUGINS." in said
    monkeypatch.setenv("FVD_PLUGINS", "acme-loop,toy,toy_noise")
    assert main(["plugins", "check", "loop", "-k", "S01"]) == 0


def test_one_local_file(tmp_path, capsys):
    file = tmp_path / "a_local_loop.py"
    source = PLUGIN.format(known={}).replace("acme_loop.loop", "a_local_loop") + LOOP.format(step="pass")
    file.write_text(textwrap.dedent(source), encoding="utf-8")
    assert main(["--plugin", str(file), "plugins", "check", "a_local_loop", "-k", "S01,S02,S03,S04,B306"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a_local_loop (local -)")
    assert lines.count("             it is not installed as a distribution") == 3
    assert lines[-1] == "3 passed, 3 skipped"


def test_the_callers_random_state_and_working_directory_stay(install, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    install()
    run(load_for_check("loop"), "loop")
    assert torch.equal(torch.get_rng_state(), before)
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


# --- the command ---
def test_the_command(install, capsys):
    install(known={"B305": "cannot"})
    assert main(["plugins", "check", "loop", "-k", "s01,B301", "-k", "B305"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        f"loops (acme-loop 0.2)   fvd-core {fvd.__version__}, kit {KIT_VERSION}",
        "  plugin",
        "    static",
        "      ✓ S01  metadata is complete, the entry point names a light module",
        "  sampler loop",
        "    behaviour",
        "      ✓ B301 makes finite latents of the shape of its noise",
        "      - B305 runs on any descending list of timesteps",
        "             its descriptor does not say takes_timesteps",
        "2 passed, 1 skipped",
    ]


def test_the_command_shows_failures_and_exits_with_1(install, capsys):
    install("1 / 0", {"B301": "divides by zero"})
    assert main(["plugins", "check", "loops", "-k", "B301"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "             divides by zero (ZeroDivisionError: division by zero (acme_loop.loop, line 6))" in lines
    assert "      ! B301 makes finite latents of the shape of its noise" in lines
    assert "      ✗ B301 makes finite latents of the shape of its noise" in lines
    assert "             | one step after the other" in lines
    assert lines[-1] == "1 failed, 1 expected failure"


def test_json_and_the_certificate_agree(install, capsys, tmp_path):
    install()
    certificate = tmp_path / "loop.json"
    assert main(["plugins", "check", "loop", "--json", "--certificate", str(certificate)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(certificate.read_text())
    assert document["fvd_core"] == fvd.__version__
    assert (document["kit"], document["plugin"], document["version"], document["ok"]) == (KIT_VERSION, "loops", "0.2", True)
    ids = [check.id for kind in ("plugin", "sampler") for check in checks_of(kind)]
    assert [row["id"] for row in document["results"]] == ids
    assert document["results"][0].keys() == {"id", "title", "group", "component", "status", "message", "seconds"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody"], "no plugin and no component is called 'nobody'"),
        (["loop", "-k", "B9"], "there is no check 'B9'"),
        (["loop", "-k", "S01", "--certificate", "x.json"], "a certificate is of all checks"),
    ],
)
def test_errors_of_the_command(install, capsys, arguments, words):
    install()
    assert main(["plugins", "check", *arguments]) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""


# --- the classes ---
def test_each_check_is_a_test_of_the_class():
    for kind, conformance in (("family", FamilyConformance), ("method", MethodConformance), ("sampler", SamplerConformance)):
        tests = {name for name in dir(conformance) if name.startswith("test_")}
        assert tests == {check.test_name for of in ("plugin", kind) for check in checks_of(of)}
    assert FamilyConformance.test_B104_add_noise_goes_from_data_to_noise.__doc__ == "B104: add_noise goes from data to noise."


@pytest.mark.parametrize("replacement", [None, lambda self: None])
def test_checks_cannot_be_overridden_or_deleted(replacement):
    with pytest.raises(TypeError, match=r"TestMine\.test_B104_add_noise_goes_from_data_to_noise: checks of the kit cannot be"):
        type("TestMine", (FamilyConformance,), {"family": "toy", "test_B104_add_noise_goes_from_data_to_noise": replacement})
    with pytest.raises(TypeError, match="test_B104_my_own"):
        type("TestMine", (FamilyConformance,), {"family": "toy", "test_B104_my_own": replacement})
    mine = type("TestMine", (FamilyConformance,), {"family": "toy", "test_of_my_own": replacement})
    with pytest.raises(TypeError, match="cannot be overridden"):
        type("TestLater", (mine,), {"test_S01_metadata": replacement})


def test_a_mixin_cannot_replace_a_check():
    name = "test_B301_makes_finite_latents_of_the_shape_of_its_noise"
    mixin = type("Mixin", (), {name: lambda self: None})
    with pytest.raises(TypeError, match=rf"TestMine\.{name}: checks of the kit cannot be overridden"):
        type("TestMine", (mixin, SamplerConformance), {"sampler": "ode"})
    with pytest.raises(TypeError, match="test_B301_my_own"):
        type("TestMine", (type("Mixin", (), {"test_B301_my_own": None}), SamplerConformance), {"sampler": "ode"})
    type("TestMine", (SamplerConformance, mixin), {"sampler": "ode"})  # after the base it replaces nothing


def test_a_check_that_is_gone_is_missed(monkeypatch):
    """Deleted from the base, or set on the class, before the class is made or after it."""
    gone, stays = (
        "test_B301_makes_finite_latents_of_the_shape_of_its_noise",
        "test_B302_the_same_generators_give_the_same_latents",
    )
    before = type("TestBefore", (SamplerConformance,), {"sampler": "ode"})
    other = type("TestOther", (SamplerConformance,), {"sampler": "ode"})
    setattr(other, gone, lambda self: None)
    with pytest.raises(TypeError, match=rf"TestOther\.{gone}: checks of the kit cannot be"):
        vars(SamplerConformance)[stays](other())
    monkeypatch.delattr(SamplerConformance, gone)
    with pytest.raises(TypeError, match=rf"TestMine\.{gone}: checks of the kit cannot be overridden or removed"):
        type("TestMine", (SamplerConformance,), {"sampler": "ode"})
    with pytest.raises(TypeError, match=rf"TestBefore\.{gone}: checks of the kit cannot be"):
        vars(SamplerConformance)[stays](before())


def test_the_class_says_what_it_is_about():
    nameless = type("TestNameless", (FamilyConformance,), {})
    with pytest.raises(FvdError, match="TestNameless must say which family it checks: family = 'NAME'"):
        nameless().test_C01_what_its_descriptor_names_loads_and_is_of_the_right_kind()


def test_the_tests_end_as_the_checks_do(install):
    install("raise ValueError('no')", {"B301": "no such loop yet", "S01": "no summary"})

    class TestLoop(SamplerConformance):
        sampler = "loop"

    try:
        with pytest.raises(pytest.xfail.Exception, match="B301: no such loop yet"):
            TestLoop().test_B301_makes_finite_latents_of_the_shape_of_its_noise()
        with pytest.raises(pytest.skip.Exception, match="B302: B301 must pass first"):
            TestLoop().test_B302_the_same_generators_give_the_same_latents()
        with pytest.raises(pytest.fail.Exception, match="remove it from expected_failures"):
            TestLoop().test_S01_metadata_is_complete_the_entry_point_names_a_light_module()
        TestLoop().test_S02_requires_fvd_core_with_a_lower_and_an_upper_bound()
        folder = TestLoop.examinations()["sampler"].subject.folder
        assert folder.is_dir()
    finally:
        TestLoop.teardown_class()
    assert not folder.exists()


def test_a_failing_test_has_the_plugins_exception_behind_it(install):
    install("raise ValueError('no')")

    class TestLoop(SamplerConformance):
        sampler = "acme-loop:loop"

    try:
        with pytest.raises(pytest.fail.Exception, match=r"B301 makes finite .*: ValueError: no \(acme_loop.loop") as failure:
            TestLoop().test_B301_makes_finite_latents_of_the_shape_of_its_noise()
        assert isinstance(failure.value.__cause__, ValueError)
    finally:
        TestLoop.teardown_class()
