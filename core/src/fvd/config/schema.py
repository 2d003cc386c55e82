"""JSON Schema of run files, for editors. What the sections of the plugins may hold follows from ``recipe``.

An editor knows the run file as `fvd check` does, but for older spellings: those the check accepts with a warning, and the
schema marks.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from fvd.config.models import PluginsConfig, Recipe, RoleConfig, TrainingConfig
from fvd.config.optimization import KNOWN_OPTIMIZERS
from fvd.errors import PluginError
from fvd.plugins import Plugins
from fvd.plugins.faults import describe
from fvd.specs import FamilySpec, MethodSpec, RoleNeeds, SamplerSpec, Spec

Schema = dict[str, Any]

# Editors offer the names; a newer torch may have more.
_OPTIMIZER_NAME: Schema = {"anyOf": [{"enum": list(KNOWN_OPTIMIZERS)}, {"type": "string"}]}


def run_file_schema(plugins: Plugins) -> Schema:
    """Parts that cannot be loaded are left out, with a line on stderr."""
    definitions: Schema = {}

    def define(name: str, model: type[BaseModel]) -> Schema:
        schema = model.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        # Two plugins may have inner models of one name.
        inner_models = schema.pop("$defs", {})
        definitions.update({f"{name}.{inner}": part for inner, part in inner_models.items()})
        for part in (schema, *inner_models.values()):
            _accept_short_lists(part)
        definitions[name] = schema
        return {"$ref": f"#/$defs/{name}"}

    recipe, role = define("recipe", Recipe), define("role", RoleConfig)
    training = define("training", TrainingConfig)
    _refine(definitions["recipe"], "family", _name_of(plugins, "family"))
    _refine(definitions["recipe"], "method", _name_of(plugins, "method"))
    _refine(definitions["role"], "family", _or_null(_name_of(plugins, "family")))
    _refine(definitions["role.OptimizerConfig"], "name", _or_null(_OPTIMIZER_NAME))
    _refine(definitions["training"], "optimizer", _OPTIMIZER_NAME)
    _refine(definitions["training"], "trackers", _name_list(_name_of(plugins, "tracker")))
    _refine(definitions["training"], "validator", _or_null(_name_of(plugins, "validator")))
    conditions = []
    for kind, section in (("family", "pipeline_config"), ("method", "method_config")):
        for name in plugins.names(kind):
            spec, before = plugins.spec(kind, name), dict(definitions)
            try:
                model = plugins.load_config(kind, name)
                reference = define(f"{kind}_{name}", model)
                if isinstance(spec, FamilySpec):
                    _refine(definitions[f"{kind}_{name}"], "sampler_kind", _or_null(_name_of(plugins, "sampler", spec)))
                json.dumps(definitions)
                conditions.append(_condition(plugins, name, spec, section, reference, model))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # one broken plugin takes only its own part away
                definitions.clear()
                definitions.update(before)
                print(f"left out: {_why(plugins, spec, error)}", file=sys.stderr)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fvd run file",
        "description": "What to train, with which method, and how. `fvd check` says more than an editor can.",
        "type": "object",
        "properties": {
            "recipe": {**recipe, "description": "Which method trains which family of models."},
            "roles": {
                "type": "object",
                "additionalProperties": role,
                "description": "The participants that the method needs, and where their weights come from.",
            },
            "training": {**training, "description": "What is common to all methods: data, optimizer, checkpoints, validation."},
            "pipeline_config": {"type": ["object", "null"], "description": "Settings of the family of models."},
            "pipeline_config_path": {"type": "string", "description": "A YAML file with the settings of the family instead."},
            "method_config": {"type": ["object", "null"], "description": "Settings of the method."},
            "plugins": {**define("plugins", PluginsConfig), "description": "Which plugins this file needs or allows."},
        },
        "required": ["recipe", "roles", "training"],
        "not": {"required": ["pipeline_config", "pipeline_config_path"]},
        "additionalProperties": False,
        "allOf": conditions,
        "$defs": definitions,
    }


def _why(plugins: Plugins, spec: Spec, error: BaseException) -> str:
    if isinstance(error, PluginError):
        return error.message
    return f"{spec.kind} {spec.name!r} of plugin {plugins.owner(spec)}: no JSON Schema of its config: {describe(error)} [P09]"


def _condition(plugins: Plugins, name: str, spec: Spec, section: str, reference: Schema, model: type[BaseModel]) -> Schema:
    """If the recipe names this plugin, its section has this shape, and the roles are its method's."""
    is_needed = any(field.is_required() for field in model.model_fields.values())
    properties: Schema = {section: reference if is_needed else _or_null(reference)}
    then: Schema = {"properties": properties, "required": [section] if is_needed else []}
    if isinstance(spec, MethodSpec):
        about = {
            role: {
                "description": _about_role(needs),
                "$ref": "#/$defs/role",
                "required": [] if needs.made_by_method else ["path"],
            }
            for role, needs in spec.roles.items()
        }
        properties["roles"] = {"properties": about, "required": list(spec.required_roles), "additionalProperties": False}
    others = [other for other in plugins.names(spec.kind) if other.rpartition(":")[2] == name and other != name]
    recipe = {"properties": {spec.kind: {"pattern": _spelling(name, others)}}, "required": [spec.kind]}
    return {"if": {"properties": {"recipe": recipe}, "required": ["recipe"]}, "then": then}


def _about_role(needs: RoleNeeds) -> str:
    """``Trained. Optional. The method makes it: it has no path.``"""
    parts = [
        "Trained." if needs.trainable else "Frozen.",
        "Optional." if needs.optional else "",
        "The method makes it: it has no path." if needs.made_by_method else "",
    ]
    return " ".join(part for part in parts if part)


def _spelling(name: str, others: Sequence[str] = ()) -> str:
    """A short name may always be qualified: ``fvd-wan:wan``. others: qualified names that mean another component."""
    if ":" in name:
        return f"^{re.escape(name)}$"
    not_others = f"(?!(?:{'|'.join(map(re.escape, others))})$)" if others else ""
    return f"^{not_others}([^:]+:)?{re.escape(name)}$"


def _name_of(plugins: Plugins, kind: str, family: FamilySpec | None = None) -> Schema:
    """Every name of a component, each with its summary; of samplers those that ``family`` has a scheduler for."""
    specs = [(name, plugins.spec(kind, name)) for name in plugins.names(kind)]
    fitting = [(name, spec) for name, spec in specs if family is None or _fits(spec, family)]
    choices: list[Schema] = [{"const": name, "title": name, "description": spec.summary} for name, spec in fitting]
    qualified = [{"pattern": _spelling(name).replace("?", ""), "type": "string"} for name, _ in fitting if ":" not in name]
    return {"anyOf": [*choices, *qualified]} if choices else {"type": "string"}


def _fits(spec: Spec, family: FamilySpec) -> bool:
    return isinstance(spec, SamplerSpec) and spec.scheduler in family.samplers


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _name_list(item: Schema) -> Schema:
    """``[wandb]``, and ``wandb, tensorboard``."""
    items = {"anyOf": [*item.get("anyOf", [item]), {"const": "none"}]}
    return {"anyOf": [{"type": "array", "items": items}, {"type": "string"}]}


def _refine(model: Schema, key: str, schema: Schema) -> None:
    """Replace what a model says of the type of one key, and keep what it says to people."""
    was = model["properties"][key]
    model["properties"][key] = schema | {word: was[word] for word in ("title", "description", "default") if word in was}


def _accept_short_lists(model: Schema) -> None:
    """Lists of numbers may be written ``8`` and ``"4, 8"`` too; a JSON Schema does not see what accepts that."""
    for key, schema in model.get("properties", {}).items():
        choices = schema.get("anyOf", [])
        if any(_is_list_of_numbers(choice) for choice in choices):
            choices.append({"type": ["number", "string"]})
        elif _is_list_of_numbers(schema):
            about = {word: schema.pop(word) for word in ("title", "description", "default") if word in schema}
            model["properties"][key] = about | {"anyOf": [schema, {"type": ["number", "string"]}]}


def _is_list_of_numbers(schema: Schema) -> bool:
    items: Sequence[Schema] = schema.get("prefixItems") or [schema.get("items", {})]
    return schema.get("type") == "array" and all(item.get("type") in ("number", "integer") for item in items)
