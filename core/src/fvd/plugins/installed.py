"""Installations that are not what they seem: editable ones that are out of date, and distributions that hide others."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fvd.plugins.discovery import GROUP, LOCAL, ON_REQUEST_GROUP, canonical
from fvd.plugins.registry import Plugins


@dataclass(frozen=True, kw_only=True)
class StaleEntryPoints:
    """W02: entry points are written down when a distribution is installed, and its source has changed since.

    folder: of the source. not_installed: what its pyproject.toml declares and nobody sees. not_declared: what is
    installed and no longer declared. Each is ``ltx = fvd_ltx.plugin``.
    """

    distribution: str
    version: str
    folder: Path
    not_installed: tuple[str, ...]
    not_declared: tuple[str, ...]

    code = "W02"

    @property
    def reason(self) -> str:
        parts = [f"its source declares `{line}`, which is not installed" for line in self.not_installed]
        parts += [f"`{line}` is installed, and its source no longer declares it" for line in self.not_declared]
        return "; ".join(parts)

    @property
    def cure(self) -> str:
        return f"python -m pip install --no-deps -e {shlex.quote(str(self.folder))}"


def stale_plugins(plugins: Plugins) -> list[StaleEntryPoints]:
    """W02 of the distributions that ``plugins`` come from."""
    found = []
    for name in dict.fromkeys(record.distribution for record in plugins.records if record.distribution != LOCAL):
        try:
            found.append(stale_entry_points(distribution(name)))
        except (PackageNotFoundError, ValueError):  # metadata that cannot be read is P01
            continue
    return [stale for stale in found if stale]


def editable_distributions() -> list[Distribution]:
    """Every distribution that is installed from a folder in place, plugin or not."""
    return [found for found in distributions() if editable_folder(found)]


def editable_folder(found: Distribution) -> Path | None:
    """The source folder of an editable installation (PEP 610), or None."""
    try:
        document = json.loads(found.read_text("direct_url.json") or "{}")
    except ValueError:
        return None
    match document:
        case {"url": str(url), "dir_info": {"editable": True}}:
            return Path(unquote(urlsplit(url).path))
    return None


def stale_entry_points(found: Distribution) -> StaleEntryPoints | None:
    """What an editable distribution's pyproject.toml declares in fvd's groups against what is installed; None where they
    agree, where it is not editable, or where nothing can be said."""
    folder = editable_folder(found)
    declared = _declared(folder / "pyproject.toml") if folder else None
    if folder is None or declared is None:
        return None
    installed = {(e.group, f"{e.name} = {e.value}") for e in found.entry_points if e.group in (GROUP, ON_REQUEST_GROUP)}
    if installed == declared:
        return None
    return StaleEntryPoints(
        distribution=found.name,
        version=found.version,
        folder=folder,
        not_installed=tuple(line for _, line in sorted(declared - installed)),
        not_declared=tuple(line for _, line in sorted(installed - declared)),
    )


def _declared(pyproject: Path) -> set[tuple[str, str]] | None:
    """(group, ``name = module``); None for a project that declares its entry points elsewhere."""
    import tomllib

    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project")
    except (OSError, ValueError):
        return None
    if not isinstance(project, dict) or "entry-points" in project.get("dynamic", ()):
        return None
    groups: dict[str, Any] = project.get("entry-points", {})
    return {
        (group, f"{name} = {str(value).strip()}")
        for group in (GROUP, ON_REQUEST_GROUP)
        for name, value in groups.get(group, {}).items()
    }


@dataclass(frozen=True, kw_only=True)
class ShadowedDistribution:
    """Two installations of one distribution: Python sees the first on ``sys.path``, and pip may see the other.

    versions and folders: in the order of ``sys.path``; the first counts.
    """

    distribution: str
    versions: tuple[str, ...]
    folders: tuple[Path, ...]

    @property
    def reason(self) -> str:
        places = [f"{version} in {folder}" for version, folder in zip(self.versions, self.folders, strict=True)]
        return f"{self.distribution} is installed more than once: {places[0]} hides {' and '.join(places[1:])}"

    @property
    def cure(self) -> str:
        return f"python -m pip uninstall {self.distribution}   (until none is left), then install it again"


def shadowed_distributions() -> list[ShadowedDistribution]:
    """Distributions with one canonical name in several places, sorted by name."""
    places: dict[str, dict[tuple[str, Path], str]] = {}
    for name, version, folder in _installations():
        places.setdefault(canonical(name), {}).setdefault((version, folder), name)
    return [
        ShadowedDistribution(
            distribution=next(iter(found.values())),
            versions=tuple(version for version, _ in found),
            folders=tuple(folder for _, folder in found),
        )
        for _, found in sorted(places.items())
        if len(found) > 1
    ]


def _installations() -> Iterator[tuple[str, str, Path]]:
    for found in distributions():
        try:
            metadata = found.metadata
            names, versions = metadata.get_all("Name"), metadata.get_all("Version")
        except Exception:  # metadata that cannot be read is another finding
            continue
        if names and versions:
            yield names[0], versions[0], Path(str(found.locate_file(""))).resolve()
