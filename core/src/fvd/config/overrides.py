"""``--set a.b=c``: one value of the run file, given on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from fvd.config.yaml_lines import Document
from fvd.errors import Problem


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Set each ``path=value`` in the document; values are read as YAML. Whether a path exists is the schema's business:
    a misspelt one is reported as the unknown key that it is, with `--set` as its place."""
    for override in overrides:
        problem = _apply(document, override)
        if problem:
            document.problems.append(problem)


def _apply(document: Document, override: str) -> Problem | None:
    place = f"--set {override}"
    dotted, equals, text = override.partition("=")
    keys = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(keys):
        return Problem(message="must look like section.key=value", file=place, cure="For example --set training.seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return Problem(message="the value is not valid YAML", key=dotted, file=place, cure="Quote it.")
    target: dict[str, Any] = document.data
    for depth, key in enumerate(keys[:-1]):
        child = target.setdefault(key, {})
        if child is None:
            child = target[key] = {}
        if not isinstance(child, dict):
            parent = ".".join(keys[: depth + 1])
            return Problem(message=f"{parent} is a value, not a section", key=dotted, file=place)
        target = child
    target[keys[-1]] = value
    for length in range(1, len(keys) + 1):
        if length == len(keys) or keys[:length] not in document.places:
            document.places[keys[:length]] = (place, None)
    return None
