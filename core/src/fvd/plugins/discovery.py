"""Entry points and metadata of installed distributions. Nothing of a plugin is imported here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import Literal

import fvd

State = Literal["ok", "slow", "disabled", "incompatible", "broken", "conflict"]
"""Of a plugin. ``fvd plugins list`` shows it. ``ok`` and ``slow`` ones can be used."""

GROUP = "fvd.plugins"
"""Entry points of plugins that are loaded wherever they are installed."""

ON_REQUEST_GROUP = "fvd.plugins.on_request"
"""Entry points of plugins that are neither loaded nor listed until somebody names them."""

LOCAL = "local"
"""The distribution of a plugin that is one file: ``--plugin FILE``."""
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
    """An entry point in one of the two groups, or a local file; not yet imported.

    module: the entry point's value, which may not be a module path. requires: lines of Requires-Dist. file: path of a
    local plugin, else empty.
    """

    name: str
    module: str
    distribution: str
    version: str
    requires: tuple[str, ...] = ()
    on_request: bool = False
    file: str = ""
    metadata_problem: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"

    @property
    def is_core(self) -> bool:
        return (self.distribution, self.name) == (CORE_DISTRIBUTION, CORE_PLUGIN)

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` means this plugin, see `means`."""
        return means(name, self.name, self.distribution)


def means(word: str, plugin: str, distribution: str) -> bool:
    """Whether ``word`` is the plugin's name, its distribution's, or both as ``distribution:plugin``; in any spelling."""
    qualifier, colon, short = word.rpartition(":")
    if colon:
        return canonical(qualifier) == canonical(distribution) and canonical(short) == canonical(plugin)
    return canonical(word) in (canonical(distribution), canonical(plugin))


def in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """By (distribution, entry point): the same on every machine and rank."""
    return sorted(candidates, key=lambda candidate: (candidate.distribution, candidate.name, candidate.module))


def find_candidates() -> list[Candidate]:
    """Every entry point of both groups, `in_order`."""
    return in_order(
        _candidate(entry.name, entry.value, entry.dist, on_request=entry.group == ON_REQUEST_GROUP) for entry in _entry_points()
    )


def _entry_points() -> list[EntryPoint]:
    """Of both groups, from every distribution whose entry points can be read."""
    groups = (GROUP, ON_REQUEST_GROUP)
    try:
        everything = entry_points()  # one scan of all distributions; each scan opens a file of every one
        return [entry for group in groups for entry in everything.select(group=group)]
    except Exception:  # one damaged file, of whatever distribution, and `entry_points` gives nothing at all
        pass
    found: dict[str, list[EntryPoint]] = {}
    for distribution in distributions():  # the first of a name on sys.path counts
        with contextlib.suppress(Exception):
            found.setdefault(canonical(distribution.metadata["Name"]), list(distribution.entry_points))
    return [entry for entries in found.values() for entry in entries if entry.group in groups]


def ask_the_authors(distribution: str) -> str:
    """What a user can do about a mistake in a plugin's code."""
    if distribution == LOCAL:
        return "Correct the file."
    return f"Report it to the authors of {distribution}; it may be made for another version of fvd-core."


def _candidate(name: str, value: str, distribution: Distribution | None, *, on_request: bool) -> Candidate:
    # Metadata is somebody else's file: half-removed installations leave none, and parsing None raises TypeError.
    try:
        if distribution is None:
            raise ValueError("no distribution")
        metadata = distribution.metadata
        owner, version = metadata.get_all("Name"), metadata.get_all("Version")
        requires = tuple(metadata.get_all("Requires-Dist") or ())
    except Exception as error:
        owner, version, requires = None, None, ()
        problem = f"the metadata of its distribution cannot be read ({type(error).__name__}: {error})"
    else:
        missing = "Name" if not owner else "Version" if not version else ""
        problem = f"the metadata of its distribution has no {missing}" if missing else ""
    return Candidate(
        name=name,
        module=value,
        distribution=owner[0] if owner else "unknown",
        version=version[0] if version else "unknown",
        requires=requires,
        on_request=on_request,
        metadata_problem=problem,
    )


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
