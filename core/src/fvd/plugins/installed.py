"""Installations that are not what they seem: editable ones that are out of date, distributions that hide others, and damage."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from fvd.plugins.discovery import GROUP, LOCAL, ON_REQUEST_GROUP, canonical
from fvd.plugins.faults import describe

if TYPE_CHECKING:
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
        match json.loads(found.read_text("direct_url.json") or "{}"):
            case {"url": str(url), "dir_info": {"editable": True}}:
                return Path(unquote(urlsplit(url).path))
    except ValueError:  # no JSON, or no URL
        pass
    return None


def stale_entry_points(found: Distribution) -> StaleEntryPoints | None:
    """What an editable distribution's pyproject.toml declares in fvd's groups against what is installed; None where they
    agree, where it is not editable, or where nothing can be said."""
    folder = editable_folder(found)
    declared = _declared(folder / "pyproject.toml") if folder else None
    if folder is None or declared is None:
        return None
    try:
        name, version = found.name, found.version
        installed = {(e.group, f"{e.name} = {e.value}") for e in found.entry_points if e.group in (GROUP, ON_REQUEST_GROUP)}
    except Exception:  # metadata that cannot be read is another finding
        return None
    if installed == declared:
        return None
    return StaleEntryPoints(
        distribution=name,
        version=version,
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
    match project:
        case {"dynamic": [*names]} if "entry-points" in names:
            return None
        case {"entry-points": dict(groups)}:
            pass
        case {"entry-points": _}:
            return None
        case dict():
            groups = {}
        case _:
            return None
    ours: dict[str, Any] = {group: groups.get(group, {}) for group in (GROUP, ON_REQUEST_GROUP)}
    if not all(isinstance(entries, dict) for entries in ours.values()):
        return None
    return {(group, f"{name} = {str(value).strip()}") for group, entries in ours.items() for name, value in entries.items()}


@dataclass(frozen=True, kw_only=True)
class ShadowedDistribution:
    """W03: two installations of one distribution. Python sees the first on ``sys.path``, and pip may see the other.

    versions and folders: in the order of ``sys.path``; the first counts.
    """

    distribution: str
    versions: tuple[str, ...]
    folders: tuple[Path, ...]

    code = "W03"

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


@dataclass(frozen=True, kw_only=True)
class DamagedEntryPoints:
    """A distribution whose entry_points.txt cannot be read: if it has plugins, nobody sees them."""

    distribution: str
    problem: str

    @property
    def reason(self) -> str:
        return f"the entry points of {self.distribution} cannot be read ({self.problem}); its plugins, if any, are not seen"

    @property
    def cure(self) -> str:
        return f"python -m pip install --force-reinstall --no-deps {self.distribution}"


def damaged_entry_points() -> list[DamagedEntryPoints]:
    """Of the distributions that Python sees, sorted by name."""
    seen: dict[str, DamagedEntryPoints | None] = {}
    for found in distributions():  # the first of a name on sys.path counts
        try:
            name = found.metadata["Name"]
        except Exception:  # metadata that cannot be read is another finding
            continue
        if name and canonical(name) not in seen:
            seen[canonical(name)] = _damage(name, found)
    return [damaged for _, damaged in sorted(seen.items()) if damaged]


def _damage(name: str, found: Distribution) -> DamagedEntryPoints | None:
    try:
        list(found.entry_points)
    except Exception as error:  # what it raises depends on the damage
        return DamagedEntryPoints(distribution=name, problem=describe(error))
    return None


def _installations() -> Iterator[tuple[str, str, Path]]:
    for found in distributions():
        try:
            metadata = found.metadata
            names, versions = metadata.get_all("Name"), metadata.get_all("Version")
        except Exception:  # metadata that cannot be read is another finding
            continue
        if names and versions:
            yield names[0], versions[0], Path(str(found.locate_file(""))).resolve()
