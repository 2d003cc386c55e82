"""JSON Schema of run files. What ``pipeline_config`` and ``method_config`` may hold follows from ``recipe``."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel

from fvd.config.models import PluginsConfig, Recipe, RoleConfig, TrainingConfig
from fvd.errors import PluginError
from fvd.plugins import Plugins


def run_file_schema(plugins: Plugins) -> dict[str, Any]:
    definitions: dict[str, Any] = {}

    def define(name: str, model: type[BaseModel]) -> dict[str, str]:
        schema = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(schema.pop("$defs", {}))
        definitions[name] = schema
        return {"$ref": f"#/$defs/{name}"}

    recipe = define("recipe", Recipe)
    definitions["recipe"]["properties"]["family"]["enum"] = plugins.names("family")
    definitions["recipe"]["properties"]["method"]["enum"] = plugins.names("method")
    conditions = []
    for kind, section in (("family", "pipeline_config"), ("method", "method_config")):
        for name in plugins.names(kind):
            try:
                model = plugins.load_config(kind, name)
            except PluginError as error:  # one broken plugin takes only its own part away
                print(f"left out: {error.message}", file=sys.stderr)
                continue
            conditions.append(_condition(kind, name, section, define(f"{kind}_{name}", model)))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fvd run file (schema v2)",
        "type": "object",
        "properties": {
            "recipe": recipe,
            "roles": {"type": "object", "additionalProperties": define("role", RoleConfig)},
            "training": define("training", TrainingConfig),
            "pipeline_config": {"type": "object"},
            "pipeline_config_path": {"type": "string"},
            "method_config": {"type": "object"},
            "plugins": define("plugins", PluginsConfig),
        },
        "required": ["recipe", "roles", "training"],
        "additionalProperties": False,
        "allOf": conditions,
        "$defs": definitions,
    }


def _condition(kind: str, name: str, section: str, reference: dict[str, str]) -> dict[str, Any]:
    """If the recipe names this plugin, its section has this shape."""
    return {
        "if": {"properties": {"recipe": {"properties": {kind: {"const": name}}}}},
        "then": {"properties": {section: reference}},
    }
