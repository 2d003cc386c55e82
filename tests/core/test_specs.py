"""What a descriptor's fields may hold is said when the plugin is loaded, not by the first command that needs a field."""

from __future__ import annotations

import pytest

from fvd.plugins import load_plugins
from fvd.testing import fake_dist, installed_in

HOOKS = {
    # hook, class and the fields without which there is none
    "family": ("fvd_families", "FamilySpec", 'provides={"decode"}'),
    "method": ("fvd_methods", "MethodSpec", 'roles={"student": fvd.RoleNeeds(trainable=True)}'),
    "sampler": ("fvd_samplers", "SamplerSpec", ""),
    "tracker": ("fvd_trackers", "TrackerSpec", ""),
    "dataset_kind": ("fvd_dataset_kinds", "DatasetKindSpec", ""),
}

WRONG = [
    # kind, the field as its author writes it, what the reason says
    ("tracker", "name=None", "tracker name must be text, got None"),
    ("tracker", "target=print", "tracker 'mine': target must be text, got <built-in function print>"),
    ("tracker", "summary=None", "tracker 'mine': summary must be text, got None"),
    ("tracker", r"summary='a\nb'", r"summary must be one line, got 'a\nb'"),
    ("tracker", r"summary='a\n'", r"summary must be one line, got 'a\n'"),
    ("tracker", "expected_failures=None", "expected_failures must be a mapping, got None"),
    ("tracker", "expected_failures=['B501']", "expected_failures must be a mapping, got ['B501']"),
    ("tracker", "expected_failures={501: 'why'}", "expected_failures: a key must be text, got 501"),
    ("tracker", "expected_failures={'B501': True}", "expected_failures['B501'] must be text, got True"),
    ("family", "config=None", "config must be text, got None"),
    ("family", "tiny=None", "tiny must be text, got None"),
    ("family", "provides=None", "provides must be a set of names, got None"),
    ("family", "provides={3}", "provides: a name must be text, got 3"),
    ("family", "samplers='ode'", "samplers must be a set of names, got the string 'ode'"),
    ("family", "samplers={1}", "samplers: a name must be text, got 1"),
    ("family", "samplers=None", "samplers must be a set of names, got None"),
    ("family", "attn_kinds={None}", "attn_kinds: a name must be text, got None"),
    ("family", "attn_kinds={''}", "attn_kinds: a name must not be empty"),
    ("family", "latent_space=None", "latent_space must be text, got None"),
    ("family", "validator=None", "validator must be text, got None"),
    ("family", "validator=''", "validator must not be empty"),
    ("family", "dataset_kind=None", "dataset_kind must be text, got None"),
    ("family", "export_formats=(1,)", "export_formats: a name must be text, got 1"),
    ("family", "export_formats=()", "export_formats must be a tuple of at least one name, got ()"),
    ("family", "export_formats='diffusers'", "export_formats must be a tuple of at least one name, got 'diffusers'"),
    ("family", "export_formats=None", "export_formats must be a tuple of at least one name, got None"),
    ("family", "example=None", "example must be a fvd.Example, got None"),
    ("family", "example='random'", "example must be a fvd.Example, got 'random'"),
    ("family", "example=fvd.Example(path=None)", "Example: path must be text, got None"),
    ("family", "example=fvd.Example(frozen_path=1)", "Example: frozen_path must be text, got 1"),
    ("family", "example=fvd.Example(training=['a'])", "Example: training must be a mapping, got ['a']"),
    ("family", "example=fvd.Example(pipeline_config=None)", "Example: pipeline_config must be a mapping, got None"),
    ("family", "example=fvd.Example(method_config={1: 2})", "Example: method_config: a key must be text, got 1"),
    ("method", "config=3", "config must be text, got 3"),
    ("method", "needs=3", "needs must be a set of names, got 3"),
    ("method", "example='random'", "example must be a fvd.Example, got 'random'"),
    ("method", "roles={1: fvd.RoleNeeds(trainable=True)}", "roles: a key must be text, got 1"),
    ("method", "roles={'student': fvd.RoleNeeds(trainable=1)}", "RoleNeeds: trainable must be True or False, got 1"),
    ("method", "moved_keys=['old']", "moved_keys must be a mapping, got ['old']"),
    ("method", "moved_keys={'old': 'new'}", "moved_keys['old'] must be a MovedKey, got 'new'"),
    ("method", "moved_keys={'old': fvd.MovedKey(to=None)}", "MovedKey: to must be text, got None"),
    ("method", "moved_keys={'old': fvd.MovedKey(to='new', values=[1])}", "MovedKey: values must be a mapping, got [1]"),
    ("method", "held_out_loss='yes'", "held_out_loss must be True or False, got 'yes'"),
    ("sampler", "scheduler=None", "scheduler must be text, got None"),
    ("sampler", "takes_timesteps='no'", "takes_timesteps must be True or False, got 'no'"),
    ("sampler", "few_step=None", "few_step must be True or False, got None"),
    ("dataset_kind", "reads_folders=0", "reads_folders must be True or False, got 0"),
]


@pytest.mark.parametrize(("kind", "field", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_a_field_of_another_type_is_p05_and_named(tmp_path, monkeypatch, kind, field, words):
    for variable in ("FVD_PLUGINS", "FVD_DISABLE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    hook, spec_class, required = HOOKS[kind]
    given = {"name": "name='mine'", "target": "target='acme_mine.mine:Mine'", required.partition("=")[0]: required}
    arguments = ", ".join(text for text in (given | {field.partition("=")[0]: field}).values() if text)
    source = f"import fvd\n@fvd.hookimpl\ndef {hook}():\n    return [fvd.{spec_class}({arguments})]\n"
    fake_dist(tmp_path, "acme-mine", entry_points={"mine": "acme_mine"}, modules={"acme_mine": source})
    with installed_in(tmp_path):
        (record,) = [record for record in load_plugins().records if record.name == "mine"]
    assert (record.state, record.code) == ("broken", "P05")
    assert words in record.reason


@pytest.mark.parametrize(("hook", "spec_class", "required"), HOOKS.values(), ids=HOOKS)
def test_without_a_wrong_field_it_is_ok(tmp_path, monkeypatch, hook, spec_class, required):
    for variable in ("FVD_PLUGINS", "FVD_DISABLE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    call = f"fvd.{spec_class}(name='mine', target='acme_mine.mine:Mine', {required})"
    source = f"import fvd\n@fvd.hookimpl\ndef {hook}():\n    return [{call}]\n"
    fake_dist(tmp_path, "acme-mine", entry_points={"mine": "acme_mine"}, modules={"acme_mine": source})
    with installed_in(tmp_path):
        (record,) = [record for record in load_plugins().records if record.name == "mine"]
    assert (record.state, record.reason) == ("ok", "")
