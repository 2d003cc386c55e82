"""What a run file says about plugins: which it names, and which versions it requires."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fvd.plugins import Plugins
from fvd.plugins.discovery import canonical


def mentioned_plugins(document: Mapping[str, Any]) -> list[str]:
    """What the file calls its families and its method: plugins that are loaded on request may go by these names."""
    recipe, roles = document.get("recipe"), document.get("roles")
    names = [recipe.get("family"), recipe.get("method")] if isinstance(recipe, dict) else []
    names += [role.get("family") for role in roles.values() if isinstance(role, dict)] if isinstance(roles, dict) else []
    return [name for name in names if isinstance(name, str)]


def unmet_requirements(requirements: Iterable[str], plugins: Plugins) -> Iterator[tuple[str, str]]:
    """(message, cure) for each line of ``plugins.require`` that is not satisfied (P12), or cannot be read."""
    from packaging.requirements import InvalidRequirement, Requirement

    versions = {canonical(record.distribution): record.version for record in plugins.records}
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            yield f"{text!r} is not a requirement", "Write it like acme-ltx>=0.1,<0.2"
            continue
        version = versions.get(canonical(requirement.name))
        if version is None:
            yield f"{text}: {requirement.name} is not installed [P12]", f"python -m pip install '{text}'"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{text}: installed is {version} [P12]", f"python -m pip install '{text}'"
