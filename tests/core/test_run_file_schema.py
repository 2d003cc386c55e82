"""`fvd schema`, judged by a JSON Schema validator: it says of run files what `fvd check` says."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from fvd.config.example import example_run_file
from fvd.config.schema import run_file_schema
from fvd.plugins import Plugins, load_plugins, registry
from fvd.testing import fake_dist, installed_in

EXAMPLES = Path(__file__).parents[2] / "examples"


def everything() -> Plugins:
    return load_plugins(mentioned=load_plugins().on_request)


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = run_file_schema(everything())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def places(validator: Draft202012Validator, document: object) -> list[str]:
    """Where an editor would draw a red line."""
    return sorted(error.json_path for error in validator.iter_errors(document))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*wan*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_right(validator, path):
    assert places(validator, yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("method", [*load_plugins().names("method"), "toy"])
@pytest.mark.parametrize("family", ["toy", "toy_noise", *load_plugins().names("family")])
def test_generated_examples_are_right(validator, family, method):
    assert places(validator, yaml.safe_load(example_run_file(everything(), family, method))) == []


TOY = {
    "recipe": {"family": "toy", "method": "toy"},
    "roles": {"student": {"path": "random"}},
    "training": {"output_dir": "outputs/toy", "max_train_steps": 10},
}


@pytest.mark.parametrize(
    ("section", "key", "value", "place"),
    [
        ("recipe", "family", "tooy", "$.recipe.family"),
        ("recipe", "family", "fvd-core:toy", None),
        ("recipe", "method", "fvd-core:tooy", "$.recipe.method"),
        ("training", "max_train_steps", "many", "$.training.max_train_steps"),
        ("training", "max_train_steps", -1, "$.training.max_train_steps"),
        ("training", "learning_rat", 1.0, "$.training"),
        ("training", "trackers", ["wandb", "none"], None),
        ("training", "trackers", ["wnadb"], "$.training.trackers"),
        ("training", "trackers", "wandb, tensorboard", None),
        ("training", "betas", [0.5, 1.5], "$.training.betas"),
        ("training", "betas", "0.5, 0.9", None),
        ("training", "validation_sampling_steps", 8, None),
        ("roles", "teacher", {"path": "analytic"}, "$.roles"),
        ("roles", "student", {"path": "random", "trainabel": True}, "$.roles.student"),
        ("pipeline_config", "modes", 4, None),
        ("pipeline_config", "modess", 4, "$.pipeline_config"),
        ("pipeline_config", "sampler_kind", "sde", None),
        ("pipeline_config", "sampler_kind", "fvd-core:sde", None),
        ("pipeline_config", "sampler_kind", None, None),
        ("pipeline_config", "sampler_kind", "odd", "$.pipeline_config"),
        ("method_config", "steps", 4, "$.method_config"),  # the method toy has no keys
        ("pipelin_config", "modes", 4, "$"),
        ("pipeline_config_path", None, "other.yaml", None),
    ],
)
def test_what_an_editor_marks(validator, section, key, value, place):
    document = copy.deepcopy(TOY)
    if key is None:
        document[section] = value
    else:
        document.setdefault(section, {})[key] = value
    found = places(validator, document)
    if place is None:
        assert found == []
    else:
        assert found
        assert all(where.startswith(place) for where in found)


def test_what_is_missing(validator):
    for section in TOY:
        document = {name: value for name, value in TOY.items() if name != section}
        assert places(validator, document) == ["$"]
    assert places(validator, TOY | {"roles": {}}) == ["$.roles"]
    assert places(validator, TOY | {"pipeline_config": {}, "pipeline_config_path": "x"}) == ["$"]
    assert places(validator, TOY | {"pipeline_config": None, "method_config": None}) == []


LIGHT = """
    import fvd

    @fvd.hookimpl
    def fvd_methods():
        roles = {{"student": fvd.RoleNeeds(trainable=True)}}
        return [fvd.MethodSpec(name="{name}", target="x:y", config="{name}_c:C", roles=roles, summary="it is {name}")]

    @fvd.hookimpl
    def fvd_samplers():
        return [fvd.SamplerSpec(name="{name}_sampler", target="x:y", scheduler="{scheduler}")]
"""
CONFIG = """
    import fvd
    from fvd.config.models import StrictModel

    class Inner(StrictModel):
        {key}: int = 1

    class C(fvd.MethodConfig):
        inner: Inner = Inner()
        needed: float
"""


def test_parts_of_different_plugins_stay_apart(tmp_path, monkeypatch, capsys):
    """Two inner models of one name, a config that is required, a sampler without scheduler, a config that cannot be loaded."""
    find = registry.find_candidates
    monkeypatch.setattr(registry, "find_candidates", lambda: [c for c in find() if c.distribution in ("fvd-core", "acme")])
    modules = {f"{name}.plugin": LIGHT.format(name=name, scheduler=kind) for name, kind in (("one", "ode"), ("two", "other"))}
    modules |= {
        "one_c": CONFIG.format(key="size"),
        "two_c": CONFIG.format(key="width"),
        "bad.plugin": LIGHT.format(name="bad", scheduler="ode"),
    }
    fake_dist(tmp_path, "acme", entry_points={name: f"{name}.plugin" for name in ("one", "two", "bad")}, modules=modules)
    with installed_in(tmp_path):
        schema = run_file_schema(everything())
    assert "left out: method 'bad'" in capsys.readouterr().err
    validator = Draft202012Validator(schema)
    recipe = {"family": "toy", "method": "one"}
    assert places(validator, TOY | {"recipe": recipe}) == ["$"]  # method_config
    assert places(validator, TOY | {"recipe": recipe, "method_config": {"needed": 1}}) == []
    for inner, place in (({"size": 3}, []), ({"width": 3}, ["$.method_config.inner"])):
        assert places(validator, TOY | {"recipe": recipe, "method_config": {"needed": 1, "inner": inner}}) == place
    bad = TOY | {"recipe": {"family": "toy", "method": "bad"}, "method_config": {"anything": 1}}
    assert places(validator, bad) == []
    for sampler, place in (("one_sampler", []), ("two_sampler", ["$.pipeline_config.sampler_kind"])):
        assert places(validator, TOY | {"pipeline_config": {"sampler_kind": sampler}}) in (
            place,
            [p[: len("$.pipeline_config")] for p in place],
        )
    choices = schema["$defs"]["recipe"]["properties"]["method"]["anyOf"]
    assert {"const": "one", "title": "one", "description": "it is one"} in choices


ODD_METHOD = """
    import fvd

    @fvd.hookimpl
    def fvd_methods():
        roles = {"student": fvd.RoleNeeds(trainable=True)}
        return [fvd.MethodSpec(name="odd", target="acme_config:Config", config="acme_config:Config", roles=roles)]
"""
ODD_CONFIG = """
    from collections.abc import Callable
    import fvd

    class Config(fvd.MethodConfig):
        strength: float = 1
        f: Callable = print
"""


def test_a_config_without_a_schema_takes_only_its_own_part_away(tmp_path, capsys):
    fake_dist(
        tmp_path, "acme-odd", entry_points={"odd": "acme_odd"}, modules={"acme_odd": ODD_METHOD, "acme_config": ODD_CONFIG}
    )
    whole = run_file_schema(everything())
    with installed_in(tmp_path):
        plugins = everything()
        schema = run_file_schema(plugins)
        assert "# f:\n" in example_run_file(plugins, "toy", "odd")
    assert schema["$defs"].keys() == whole["$defs"].keys()
    assert len(schema["allOf"]) == len(whole["allOf"])
    assert Draft202012Validator(schema).is_valid(TOY)
    said = capsys.readouterr().err
    assert "left out: method 'odd' of plugin odd (acme-odd 1.0)" in said
    assert "[P09]" in said


def test_a_qualified_name_is_not_taken_for_cores(tmp_path):
    source = """
        import fvd

        @fvd.hookimpl
        def fvd_families(): return [fvd.FamilySpec(name="toy", target="a:b", config="acme_config:Config", provides={"predict"})]
    """
    config = "import fvd\nclass Config(fvd.PipelineConfig): shapes: int = 1"
    modules = {"acme_toys": source, "acme_config": config}
    fake_dist(tmp_path, "acme-toys", entry_points={"acme_toys": "acme_toys"}, modules=modules)
    with installed_in(tmp_path):
        validator = Draft202012Validator(run_file_schema(everything()))
    for family, own, other in [
        ("toy", "modes", "shapes"),
        ("fvd-core:toy", "modes", "shapes"),
        ("acme-toys:toy", "shapes", "modes"),
    ]:
        document = {**TOY, "recipe": {"family": family, "method": "toy"}}
        assert places(validator, {**document, "pipeline_config": {own: 3}}) == []
        assert places(validator, {**document, "pipeline_config": {other: 3}}) != []
