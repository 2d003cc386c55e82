"""Entry points and metadata of installed distributions. Nothing of a plugin is imported here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, entry_points
from typing import Literal

import fvd

State = Literal["ok", "broken", "incompatible", "conflict", "disabled"]
"""Of a plugin. ``fvd plugins list`` shows it."""

GROUP = "fvd.plugins"
CORE_DISTRIBUTION = "fvd-core"
CORE_PLUGIN = "core"

_MODULE_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_REQUIREMENT_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def canonical(name: str) -> str:
    """One spelling for names of plugins and distributions: ``FVD_Wan`` and ``fvd.wan`` are ``fvd-wan``."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


class Unusable(Exception):
    """Why one plugin cannot be used. Becomes the state of its record; never reaches the user as an exception."""

    def __init__(self, state: State, code: str, reason: str, cure: str = "") -> None:
        super().__init__(reason)
        self.state = state
        self.code = code
        self.reason = reason
        self.cure = cure


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An entry point in the group ``fvd.plugins``, not yet imported.

    module: the entry point's value, which may not be a module path. requires: lines of Requires-Dist.
    """

    name: str
    module: str
    distribution: str
    version: str
    requires: tuple[str, ...] = ()
    metadata_problem: str = ""

    @property
    def is_core(self) -> bool:
        return (self.distribution, self.name) == (CORE_DISTRIBUTION, CORE_PLUGIN)

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` means this plugin: its distribution or its entry point, in any spelling."""
        return canonical(name) in (canonical(self.distribution), canonical(self.name))


def find_candidates() -> list[Candidate]:
    """Every entry point of the group, sorted by (distribution, entry point): the same on every machine and rank."""
    found = [_candidate(entry.name, entry.value, entry.dist) for entry in entry_points(group=GROUP)]
    return sorted(found, key=lambda candidate: (candidate.distribution, candidate.name, candidate.module))


def _candidate(name: str, value: str, distribution: Distribution | None) -> Candidate:
    # Metadata is somebody else's file: half-removed installations leave none, and parsing None raises TypeError.
    try:
        if distribution is None:
            raise ValueError("no distribution")
        metadata = distribution.metadata
        owner, version = metadata.get_all("Name"), metadata.get_all("Version")
        requires = tuple(metadata.get_all("Requires-Dist") or ())
    except Exception as error:
        problem = f"the metadata of its distribution cannot be read ({type(error).__name__}: {error})"
        return Candidate(name=name, module=value, distribution="unknown", version="unknown", metadata_problem=problem)
    if not owner or not version:
        problem = f"the metadata of its distribution has no {'Version' if owner else 'Name'}"
        return Candidate(
            name=name,
            module=value,
            distribution=owner[0] if owner else "unknown",
            version=version[0] if version else "unknown",
            metadata_problem=problem,
        )
    return Candidate(name=name, module=value, distribution=owner[0], version=version[0], requires=requires)


def check_entry_point(candidate: Candidate) -> None:
    """Raise Unusable (P01) for an entry point that names no module."""
    if candidate.metadata_problem:
        raise Unusable(
            "broken", "P01", candidate.metadata_problem, "Reinstall the distribution that declares this entry point."
        )
    if not _MODULE_PATH.fullmatch(candidate.module):
        raise Unusable(
            "broken",
            "P01",
            f"entry point `{candidate.name} = {candidate.module}` is not a module path",
            "The plugin's author must name a module, like `fvd_example.plugin`, without `:attribute`.",
        )


def check_core_version(candidate: Candidate, core_version: str = fvd.__version__) -> None:
    """Raise Unusable (P02) where the distribution requires another fvd-core. pip checks this when it installs, but not
    with ``--no-deps``, and not when core is upgraded later."""
    for line in candidate.requires:
        name = _REQUIREMENT_NAME.match(line)
        if name and canonical(name.group(1)) == CORE_DISTRIBUTION:
            _check_requirement(candidate, line, core_version)


def _check_requirement(candidate: Candidate, line: str, core_version: str) -> None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        raise Unusable(
            "incompatible", "P02", f"requirement {line!r} cannot be read", f"Reinstall {candidate.distribution}."
        ) from None
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return
    if not requirement.specifier.contains(core_version, prereleases=True):
        raise Unusable(
            "incompatible",
            "P02",
            f"needs {CORE_DISTRIBUTION}{requirement.specifier}, have {core_version}",
            f"python -m pip install --upgrade {candidate.distribution} {CORE_DISTRIBUTION}",
        )


def check_conflict(candidate: Candidate, others: Collection[Candidate]) -> None:
    """Raise Unusable (P06) where another enabled entry point claims the same name or the same module. Nobody wins but
    core, whose names cannot be taken."""
    if candidate.is_core:
        return
    rivals = [other for other in others if other is not candidate and _claims_the_same(candidate, other)]
    if not rivals:
        return
    same_name = any(canonical(other.name) == canonical(candidate.name) for other in rivals)
    claim = f"plugin name {candidate.name!r}" if same_name else f"module {candidate.module!r}"
    raise Unusable(
        "conflict",
        "P06",
        f"{claim} is claimed by {_and([candidate.distribution, *(other.distribution for other in rivals)])}",
        f"Uninstall one of them, or disable one: -p no:{candidate.distribution}"
        + "".join(f" or -p no:{other.distribution}" for other in rivals if not other.is_core),
    )


def _claims_the_same(one: Candidate, other: Candidate) -> bool:
    return canonical(one.name) == canonical(other.name) or one.module == other.module


def _and(names: Iterable[str]) -> str:
    return " and ".join(sorted(set(names)))
