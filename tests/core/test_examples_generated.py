"""`fvd plugins example`: every pair that is installed makes a run file that is right as it is and with every key set."""

from __future__ import annotations

import re

import pytest
import yaml

import fvd
from fvd.cli.main import main
from fvd.config.document import keys_of
from fvd.config.example import example_run_file, first_that_fits
from fvd.config.load import load_run_file
from fvd.config.models import PipelineConfig, TrainingConfig
from fvd.plugins import Plugins, load_plugins, registry
from fvd.plugins.fit import missing_primitives
from fvd.testing import fake_dist, installed_in


def everything() -> Plugins:
    return load_plugins(mentioned=load_plugins().on_request)


def fitting_pairs() -> list[tuple[str, str]]:
    plugins = everything()
    pairs = [(family, method) for family in plugins.names("family") for method in plugins.names("method")]
    return [(f, m) for f, m in pairs if not missing_primitives(plugins.spec("method", m), plugins.spec("family", f))]


PAIRS = fitting_pairs()


def checked(tmp_path, text: str) -> fvd.RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_run_file(path).require()


def with_every_key(text: str) -> str:
    """Each key that is in a comment, set to what the comment shows."""
    return re.sub(r"^( *)# (?=(?:  )?[a-z_0-9]+:(?: |$))", r"\1", text, flags=re.MULTILINE)


def test_there_are_pairs():
    assert {"toy", "toy_noise"} <= {family for family, _ in PAIRS}
    assert len(PAIRS) >= 2


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_an_example_is_a_right_run_file(family, method, tmp_path):
    plugins = everything()
    text = example_run_file(plugins, family, method)
    config = checked(tmp_path, text)
    assert (config.recipe.family, config.recipe.method) == (family, method)
    given = yaml.safe_load(text)["method_config"] or {}
    assert (
        given.items()
        >= {key: as_yaml(value) for key, value in plugins.spec("method", method).example.method_config.items()}.items()
    )
    paths = {role: spec.path for role, spec in config.roles.items()}
    example = plugins.spec("family", family).example
    roles = plugins.spec("method", method).roles
    assert set(paths) == {role for role, needs in roles.items() if not needs.optional}
    for role in paths:
        needs = roles[role]
        assert paths[role] == (example.path if needs.trainable else example.frozen_path or example.path)


def as_yaml(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_its_comments_are_keys_with_their_defaults(family, method, tmp_path):
    text = example_run_file(everything(), family, method)
    config, full = checked(tmp_path, text), checked(tmp_path, with_every_key(text))
    assert full.model_copy(update={"plugins": config.plugins}) == config
    document = yaml.safe_load(with_every_key(text))
    for section, model in (
        ("training", config.training),
        ("pipeline_config", config.pipeline_config),
        ("method_config", config.method_config),
    ):
        left_out = set(type(model).model_fields) - set(document[section] or {})
        assert left_out <= {"data_path"}  # of families that make their own data


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_lines_are_short(family, method):
    lines = example_run_file(everything(), family, method).splitlines()
    assert [line for line in lines if len(line) > 128 and "negative_prompt" not in line and "require" not in line] == []


@pytest.mark.parametrize("model", [TrainingConfig, PipelineConfig], ids=lambda model: model.__name__)
def test_every_key_of_core_says_what_it_is(model):
    assert [key.name for key in keys_of(model) if not key.description] == []


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_who_says_the_learning_rate(family, method, tmp_path):
    """The toys, whose networks learn at 5e-3 and at no video model's rate; of every other family the method."""
    plugins = everything()
    config = checked(tmp_path, example_run_file(plugins, family, method))
    default = TrainingConfig.model_fields["learning_rate"].default
    said = plugins.spec("method", method).example.training.get("learning_rate", default)
    assert config.training.learning_rate == (5e-3 if family.startswith("toy") else said)


# --- made for the test -----------------------------------------------------------------------------------------------
LIGHT = """
    import fvd

    @fvd.hookimpl
    def fvd_families():
        example = fvd.Example(path="x", frozen_path="y", training={"learning_rate": 0.1, "betas": (0.5, 0.9)},
                              pipeline_config={"solver": "exact"})
        return [
            fvd.FamilySpec(name="ltx", target="m.c:F", config="m.c:C", provides=fvd.TEXT_TO_VIDEO, example=example),
            fvd.FamilySpec(name="poor", target="m.c:F", provides={"prepare_batch"}),
        ]

    @fvd.hookimpl
    def fvd_methods():
        roles = {"pupil": fvd.RoleNeeds(trainable=True, needs={"predict"}), "master": fvd.RoleNeeds(trainable=False)}
        training = {"learning_rate": 0.2, "lr_scheduler": "linear"}
        example = fvd.Example(training=training, pipeline_config={"solver": "fast", "shape": 3})
        return [fvd.MethodSpec(name="school", target="m.c:F", config="m.c:M", roles=roles, example=example)]
"""
CONFIGS = '''
    from typing import Literal

    import fvd
    from fvd.config.models import StrictModel

    class Inner(StrictModel):
        size: int = 2

    class C(fvd.PipelineConfig):
        solver: Literal["fast", "exact"] = "fast"
        """How steps are made. More words."""
        note: str = "two\\nlines: # and more"

    class M(fvd.MethodConfig):
        steps: int
        """How many."""
        inner: Inner = Inner()
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    find = registry.find_candidates
    monkeypatch.setattr(
        registry, "find_candidates", lambda: [c for c in find() if c.distribution in ("fvd-core", "acme", "bravo")]
    )
    modules = {"m": "", "m.plugin": LIGHT, "m.c": CONFIGS}
    fake_dist(tmp_path, "acme", entry_points={"school": "m.plugin"}, modules=modules)
    with installed_in(tmp_path):
        yield tmp_path


def printed(capsys, *argv: str) -> str:
    assert main(["plugins", "example", *argv]) == 0
    return capsys.readouterr().out


def test_what_descriptors_say_and_who_counts_more(installed):
    text = example_run_file(load_plugins(), "ltx", "school")
    document = yaml.safe_load(text)
    assert document["roles"] == {"pupil": {"path": "x"}, "master": {"path": "y"}}
    assert document["training"] == {
        "output_dir": "outputs/ltx-school",
        "max_train_steps": 1000,
        "data_path": "data/ltx",
        "learning_rate": 0.1,  # the family's: it knows what its networks need
        "lr_scheduler": "linear",  # the method's
        "betas": [0.5, 0.9],
    }
    assert document["pipeline_config"] == {"solver": "fast"}  # `shape` is no key of this family
    assert document["method_config"] == {"steps": None}
    assert "  steps:  # REQUIRED; int: How many" in text.splitlines()
    assert "  # inner:  # a section\n  #   size: 2  # int\n" in text
    assert "  solver: fast  # fast | exact: How steps are made" in text.splitlines()
    assert yaml.safe_load(with_every_key(text))["pipeline_config"]["note"] == "two\nlines: # and more"


def test_the_first_that_fits(installed):
    plugins = load_plugins()
    assert first_that_fits(plugins, family="ltx") == "school"
    assert first_that_fits(plugins, method="school") == "ltx"
    assert first_that_fits(plugins, family="poor") == ""


def test_names_on_the_command_line(installed, capsys):
    for argv in (["ltx"], ["school"], ["ltx", "--method", "school"], ["school", "--family", "ltx"]):
        assert yaml.safe_load(printed(capsys, *argv))["recipe"] == {"family": "ltx", "method": "school"}
    assert yaml.safe_load(printed(capsys, "school", "--family", "toy"))["recipe"]["family"] == "toy"
    assert yaml.safe_load(printed(capsys, "ltx", "--method", "toy"))["recipe"]["method"] == "toy"
    for argv in (["toy_noise", "--method", "school"], ["school", "--family", "toy_noise"]):
        assert yaml.safe_load(printed(capsys, *argv))["recipe"] == {"family": "toy_noise", "method": "school"}
    assert yaml.safe_load(printed(capsys, "toy_noise"))["recipe"] == {"family": "toy_noise", "method": "school"}
    assert yaml.safe_load(printed(capsys, "toy", "--family", "ltx"))["recipe"] == {"family": "ltx", "method": "toy"}


def test_a_name_with_its_kind_as_the_listing_has_it(installed, capsys):
    for argv in (["method:school"], ["family:ltx"], ["acme:school"], ["method:acme:school"]):
        assert yaml.safe_load(printed(capsys, *argv))["recipe"]["method"].endswith("school")
    for word in ("sampler:ode", "bravo:ltx", "method:ltx"):
        assert main(["plugins", "example", word]) == 1
        assert f"there is no family or method '{word}'" in capsys.readouterr().err


def test_a_method_without_family_gets_the_toy(installed, capsys):
    light = "\n    import fvd\n\n" + LIGHT[LIGHT.index("    @fvd.hookimpl\n    def fvd_methods") :]
    fake_dist(installed, "acme", entry_points={"school": "m.plugin"}, modules={"m": "", "m.plugin": light, "m.c": CONFIGS})
    assert yaml.safe_load(printed(capsys, "school"))["recipe"] == {"family": "toy", "method": "school"}


def test_an_ambiguous_name_is_qualified(installed, capsys):
    fake_dist(installed, "bravo", entry_points={"b": "b.plugin"}, modules={"b": "", "b.plugin": LIGHT})
    assert yaml.safe_load(printed(capsys, "bravo:ltx"))["recipe"] == {"family": "bravo:ltx", "method": "acme:school"}


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["ltxx"], "there is no family or method 'ltxx' (did you mean 'ltx'?) [P08]"),
        (["wan"], "family 'wan' is not installed"),
        (["dmd2"], "method 'dmd2' is not installed"),
        (["ltx", "--method", "schol"], "there is no method 'schol' (did you mean 'school'?)"),
        (["ltx", "--family", "poor"], "ltx is itself a family, and --family names another"),
        (["school", "--method", "x"], "school is itself a method, and --method names another"),
        (["ltx", "--method", "school", "--family", "ltx"], "NAME is one of the two"),
        (["poor"], "nothing that is installed fits poor"),
    ],
)
def test_what_cannot_be_made(installed, capsys, argv, complaint):
    assert main(["plugins", "example", *argv]) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""
