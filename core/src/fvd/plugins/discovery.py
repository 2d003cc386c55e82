"""Entry points and metadata of installed distributions. Nothing of a plugin is imported here."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import Literal

import fvd

State = Literal["ok", "slow", "disabled", "incompatible", "broken", "conflict"]
"""Of a plugin. ``fvd plugins list`` shows it. ``ok`` and ``slow`` ones can be used."""

GROUP = "fvd.plugins"
"""Entry points of plugins that are loaded wherever they are installed."""

WITHOUT_ENTRY_POINTS = {"PYDANTIC_DISABLE_PLUGINS": "__all__", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
"""pydantic and torch scan the entry points of all distributions too, and fail where one list cannot be read. With these in
the environment they do not look. They are set only where it is so, and not where the user has set them."""

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

    @property
    def of_core(self) -> bool:
        """Whether it comes with core: nobody can take its name."""
        return canonical(self.distribution) == CORE_DISTRIBUTION

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
    """Every entry point of both groups, `in_order`; and one for each distribution that seems to have some and whose list of
    them cannot be read."""
    entries, damaged = _entry_points()
    found = [_candidate(it.name, it.value, it.dist, on_request=it.group == ON_REQUEST_GROUP) for it in entries]
    return in_order([*found, *(_damaged_candidate(distribution) for distribution in damaged)])


def _entry_points() -> tuple[list[EntryPoint], list[Distribution]]:
    """Of both groups, from every distribution whose entry points can be read; and those that cannot, and speak of a group."""
    groups = (GROUP, ON_REQUEST_GROUP)
    try:
        everything = entry_points()  # one scan of all distributions; each scan opens a file of every one
        return [entry for group in groups for entry in everything.select(group=group)], []
    except Exception:  # one damaged file, of whatever distribution, and `entry_points` gives nothing at all
        pass
    for variable, value in WITHOUT_ENTRY_POINTS.items():
        os.environ.setdefault(variable, value)
    found: dict[str, list[EntryPoint]] = {}
    damaged: dict[str, Distribution] = {}
    for distribution in distributions():  # the first of a name on sys.path counts
        with contextlib.suppress(Exception):
            name = canonical(distribution.metadata["Name"])
            if name not in found and name not in damaged:
                if _can_be_read(distribution):
                    found[name] = list(distribution.entry_points)
                else:
                    damaged[name] = distribution
    entries = [entry for entries in found.values() for entry in entries if entry.group in groups]
    return entries, [distribution for distribution in damaged.values() if GROUP in _entry_points_text(distribution)]


def _can_be_read(distribution: Distribution) -> bool:
    try:
        list(distribution.entry_points)
    except Exception:
        return False
    return True


def _entry_points_text(distribution: Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except UnicodeDecodeError as error:
        return error.object.decode("latin-1")


def _damaged_candidate(distribution: Distribution) -> Candidate:
    """Under the distribution's name, for want of the plugin's."""
    found = _candidate(distribution.metadata["Name"], "entry_points.txt", distribution, on_request=False)
    return replace(found, metadata_problem="the entry_points.txt of its distribution cannot be read")


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
    from packaging.requirements import Requirement

    try:
        requirement = Requirement(line)
        # Some markers can be read and not be evaluated: `python_version ~= "x"`.
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        fits = requirement.specifier.contains(core_version, prereleases=True)
    except ValueError:
        raise Unusable(
            "incompatible", "P02", f"requirement {line!r} cannot be read", f"Reinstall {candidate.distribution}."
        ) from None
    if applies and not fits:
        raise Unusable(
            "incompatible",
            "P02",
            f"needs {CORE_DISTRIBUTION}{requirement.specifier}, have {core_version}",
            f"python -m pip install --upgrade {candidate.distribution} {CORE_DISTRIBUTION}",
        )


def check_conflict(candidate: Candidate, others: Collection[Candidate]) -> None:
    """Raise Unusable (P06) where another entry point claims the same name or the same module. Nobody wins but core, whose
    names cannot be taken. others: those that are enabled, and all of core, whether they are asked for or not."""
    if candidate.of_core:
        return
    rivals = [other for other in others if other is not candidate and _claims_the_same(candidate, other)]
    if not rivals:
        return
    same_name = any(canonical(other.name) == canonical(candidate.name) for other in rivals)
    claim = f"plugin name {candidate.name!r}" if same_name else f"module {candidate.module!r}"
    claimants = _and([it.file or it.distribution for it in (candidate, *rivals)])
    raise Unusable("conflict", "P06", f"{claim} is claimed by {claimants}", _cure_for_conflict(candidate, rivals))


def _cure_for_conflict(candidate: Candidate, rivals: Collection[Candidate]) -> str:
    files = sorted(it.file for it in (candidate, *rivals) if it.file)
    if files:
        return f"Rename {' or '.join(files)}, or leave {'one of them' if len(files) > 1 else 'it'} out."
    if any(other.of_core for other in rivals):
        return f"Uninstall {candidate.distribution}, or disable it: -p no:{candidate.distribution}"
    return f"Uninstall one of them, or disable one: -p no:{candidate.distribution}" + "".join(
        f" or -p no:{other.distribution}" for other in rivals
    )


def _claims_the_same(one: Candidate, other: Candidate) -> bool:
    return canonical(one.name) == canonical(other.name) or one.module == other.module


def _and(names: Iterable[str]) -> str:
    return " and ".join(sorted(set(names)))
