"""Every check of the conformance kit can fail: for each id at least one wrong plugin, which fails it and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import wrong_families
import wrong_methods
import wrong_others
import wrong_videos
from wrong_plugins import Wrong, install_wrong

import fvd
from fvd.plugins import Plugins
from fvd.testing import fake_dist, installed_in
from fvd.testing.conformance import CHECKS, Report, load_for_check, run
from fvd.testing.conformance.examination import Examination
from fvd.testing.conformance.table import checks_of

COMPONENTS: list[Wrong] = [
    *wrong_families.fails.found,
    *wrong_videos.fails.found,
    *wrong_methods.fails.found,
    *(
        it
        for collector in vars(wrong_others).values()
        if isinstance(collector, type(wrong_families.fails))
        for it in collector.found
    ),
]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory) -> Iterator[Plugins]:
    site = tmp_path_factory.mktemp("wrong")
    install_wrong(site, [*COMPONENTS, *wrong_videos.passes.found])
    with installed_in(site):
        yield load_for_check()


RUNS = {"B115", "B208", "B211"}
"""Runs, most of the time of all checks: made here of those only that are to fail them."""


@pytest.mark.parametrize("wrong", COMPONENTS, ids=lambda wrong: wrong.id)
def test_it_fails_exactly_its_check(plugins, wrong):
    expected = {wrong.check, *wrong.also}
    spec = plugins.spec(wrong.kind, wrong.name)
    with Examination(plugins, plugins.owner(spec), spec) as examination:
        checks = [check for check in checks_of(wrong.kind) if check.id not in RUNS - expected]
        results = {check.id: examination.result(check) for check in checks}
    failed = {check: result.message for check, result in results.items() if result.status == "failed"}
    assert failed.keys() == expected, failed
    assert wrong.words in failed[wrong.check]


def test_a_family_with_nothing_wrong_passes_them_all(plugins):
    """So the wrong ones fail for what is wrong with them."""
    spec = plugins.spec("family", "nothing_wrong")
    with Examination(plugins, plugins.owner(spec), spec) as examination:
        results = [examination.result(check) for check in checks_of("family")]
    assert {result.id: result.message for result in results if result.status != "passed"} == {
        "B117": "shard_units() names no blocks",
        "B120": "the family does not provide feature_widths, features, predict_x0_with_features",
    }


def test_a_check_that_needs_a_failed_one_is_skipped(plugins):
    spec = plugins.spec("family", "thawed")
    with Examination(plugins, plugins.owner(spec), spec) as examination:
        results = [examination.result(check) for check in checks_of("family") if check.group == "behaviour"]
    assert {result.id: (result.status, result.message) for result in results[1:]} == {
        "B102": ("skipped", "B101 must pass first")
    } | {f"B1{number:02}": ("skipped", "B102 must pass first") for number in range(3, 19)} | {
        "B119": ("skipped", "B104 and B112 must pass first"),
        "B120": ("skipped", "B106 and B107 must pass first"),
    }


# --- checks of a whole plugin ---
LIGHT = """
    import fvd

    @fvd.hookimpl
    def fvd_samplers():
        return [fvd.SamplerSpec(name="loop", target="fvd.samplers.ode:sample_ode", summary="a loop")]
"""
FAMILY = """
    import fvd

    @fvd.hookimpl
    def fvd_families():
        return [fvd.FamilySpec(name="model", target="acme_x.family:Model", summary="a model", provides=(), {})]
"""
RANGE = (f"fvd-core>={fvd.__version__},<1",)
EXAMPLE = 'example=fvd.Example(path="random")'


def light(more: str) -> dict[str, str]:
    return {"acme_x.plugin": LIGHT.replace('summary="a loop"', more)}


PLUGINS = {
    "S01 no summary": ("S01", "lack [project] description", {"summary": ""}),
    "S01 a package": (
        "S01",
        "names a package",
        {"entry_points": {"x": "acme_x"}, "modules": {"acme_x": LIGHT, "acme_x.more": ""}},
    ),
    "S02 nothing": ("S02", "does not require fvd-core", {"requires": ()}),
    "S02 no upper": ("S02", "no upper bound", {"requires": ("fvd-core>=0.1",)}),
    "S02 no lower": ("S02", "no lower bound", {"requires": ("fvd_core <1",)}),
    "S03 heavy": ("S03", "loads numpy", {"modules": {"acme_x.plugin": "import numpy\n" + LIGHT.replace("\n    ", "\n")}}),
    "S03 config": (
        "S03",
        "the config module acme_x.config loads numpy, torch",
        {
            "modules": {
                "acme_x.plugin": FAMILY.format(EXAMPLE + ', config="acme_x.config:Config"'),
                "acme_x.config": "import torch",
            }
        },
    ),
    "S04 no summary": ("S04", "sampler loop: it has no summary", {"modules": light('summary=""')}),
    "S04 long summary": ("S04", "at most 120 characters", {"modules": light(f'summary="{"a" * 121}"')}),
    "S04 unknown check": (
        "S04",
        "'B1O4', which is no check of a sampler",
        {"modules": light('summary="a", expected_failures={"B1O4": ""}')},
    ),
    "S04 check of another kind": ("S04", "'B104'", {"modules": light('summary="a", expected_failures={"B104": ""}')}),
    "S04 validator": (
        "S04",
        "has the validator 'vidio' that it names (did you mean 'video'?)",
        {"modules": {"acme_x.plugin": FAMILY.format(EXAMPLE + ', validator="vidio"')}},
    ),
    "S04 sampler": (
        "S04",
        "no installed sampler asks for a scheduler of kind 'odd'",
        {"modules": {"acme_x.plugin": FAMILY.format(EXAMPLE + ', samplers={"odd"}')}},
    ),
    "S04 nothing to try": ("S04", "neither `tiny` nor `example.path`", {"modules": {"acme_x.plugin": FAMILY.format("")}}),
    "S04 broken": ("S04", "[P04]", {"modules": {"acme_x.plugin": LIGHT.replace("fvd_samplers", "fvd_sampler")}}),
}


def check_plugin(tmp_path, **changes) -> Report:
    arguments = {
        "entry_points": {"x": "acme_x.plugin"},
        "modules": {"acme_x.plugin": LIGHT},
        "requires": RANGE,
    } | changes
    fake_dist(tmp_path, "acme-x", **arguments)
    with installed_in(tmp_path):
        return run(load_for_check("x"), "x", only=["S01", "S02", "S03", "S04"])


@pytest.mark.parametrize(("check", "words", "changes"), PLUGINS.values(), ids=PLUGINS)
def test_a_plugin_fails_exactly_its_check(tmp_path, check, words, changes):
    report = check_plugin(tmp_path, **changes)
    failed = {result.id: result.message for result in report.results if result.status == "failed"}
    assert failed.keys() == {check}, failed
    assert words in failed[check]


def test_what_core_prints_is_not_taken_for_the_plugins(plugins):
    report = run(plugins, "acme-wrong:swaps_height_and_width", only=["B101", "B102", "B113", "B115"])
    assert {result.id: result.output for result in report.results} == dict.fromkeys(["B101", "B102", "B113", "B115"], "")


def test_a_good_plugin_passes_them_all(tmp_path):
    assert {result.status for result in check_plugin(tmp_path).results} == {"passed"}


def test_no_check_is_without_a_plugin_that_fails_it():
    proven = {wrong.check for wrong in COMPONENTS} | {check for check, _, _ in PLUGINS.values()}
    assert proven == {check.id for check in CHECKS}
    for kind in ("family", "method", "sampler", "validator", "tracker", "dataset_kind", "command"):
        of_kind = {wrong.check for wrong in COMPONENTS if wrong.kind == kind}
        shared = {"C01", "C03"}  # the others are of the same code for both kinds
        assert of_kind >= shared | {check.id for check in checks_of(kind) if check.group == "behaviour"}
