"""Which plugins the user has named, to have them or not, and where. A name that means no plugin is an error, not a shrug."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fvd.errors import PluginError, did_you_mean
from fvd.plugins.discovery import Candidate, Unusable

DISABLE_VARIABLE = "FVD_DISABLE_PLUGINS"
ALLOW_VARIABLE = "FVD_PLUGINS"


class UnknownPluginName(PluginError):
    """Somebody switches on or off what is not installed, or core. names: those that mean nothing here."""

    def __init__(self, message: str, *, cure: str, names: Collection[str]) -> None:
        super().__init__(message, cure=cure)
        self.names = frozenset(names)


@dataclass(frozen=True)
class Switch:
    """One place where plugins are named. denies: not these. allows: no others. requests: these too, though they are
    loaded on request only."""

    place: str
    names: tuple[str, ...]
    effect: Literal["denies", "allows", "requests"]


def find_switches(
    disable: Collection[str], only: Collection[str] | None, request: Collection[str], environment: Mapping[str, str]
) -> list[Switch]:
    """All places that are in use. Each narrows what the others leave: a run file cannot widen FVD_PLUGINS."""
    switches = [Switch(f"-p no:{name}", (name,), "denies") for name in disable]
    switches += [Switch(f"-p {name}", (name,), "requests") for name in request]
    if only is not None:
        switches.append(Switch("plugins.only", tuple(only), "allows"))
    if DISABLE_VARIABLE in environment:
        switches.append(Switch(DISABLE_VARIABLE, _split(environment[DISABLE_VARIABLE]), "denies"))
    if ALLOW_VARIABLE in environment:
        switches.append(Switch(ALLOW_VARIABLE, _split(environment[ALLOW_VARIABLE]), "allows"))
    return switches


def _split(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def check_switches(switches: Sequence[Switch], candidates: Sequence[Candidate]) -> None:
    """Raise UnknownPluginName for names that mean no installed plugin, and for core among those to disable."""
    problems = []
    unknown = []
    for switch in switches:
        for name in switch.names:
            named = [candidate for candidate in candidates if candidate.answers_to(name)]
            if not named:
                unknown.append(name)
                known = sorted({word for candidate in candidates for word in (candidate.name, candidate.distribution)})
                problems.append(f"{switch.place} names {name!r}, but no such plugin is installed{did_you_mean(name, known)}")
            elif switch.effect == "denies" and any(candidate.is_core for candidate in named):
                problems.append(f"{switch.place} names {name!r}: core cannot be disabled")
    if problems:
        installed = ", ".join(candidate.name for candidate in candidates if not candidate.on_request) or "none"
        on_request = ", ".join(candidate.name for candidate in candidates if candidate.on_request)
        also = f" On request: {on_request}." if on_request else ""
        raise UnknownPluginName("\n".join(problems), cure=f"Installed plugins: {installed}.{also}", names=unknown)


def find_present(switches: Sequence[Switch], mentioned: Collection[str], candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates without those that are loaded on request and that nobody asks for."""
    asked_for = [name for switch in switches if switch.effect != "denies" for name in switch.names] + list(mentioned)
    others = [candidate for candidate in candidates if not candidate.on_request]
    return [
        candidate
        for candidate in candidates
        if not candidate.on_request or any(_asks_for(name, candidate, others) for name in asked_for)
    ]


def _asks_for(name: str, candidate: Candidate, others: Collection[Candidate]) -> bool:
    """A name that means another plugin anyway asks for no more: ``fvd-core`` is core without its toys."""
    # What a stranger's plugin is called takes nothing away from core's.
    rivals = [other for other in others if other.of_core] if candidate.of_core else others
    return candidate.answers_to(name) and not any(rival.answers_to(name) for rival in rivals)


def find_disabled(switches: Sequence[Switch], candidates: Sequence[Candidate]) -> dict[Candidate, Unusable]:
    """The candidates that are not to be imported, and why (P10)."""
    disabled = {}
    for candidate in candidates:
        against = [switch for switch in switches if _switches_off(switch, candidate)]
        if against and not candidate.is_core:
            reason, cure = (" and ".join(map(words, against)) for words in (_reason, _cure))
            disabled[candidate] = Unusable("disabled", "P10", reason, f"To have it, {cure}.")
    return disabled


def _switches_off(switch: Switch, candidate: Candidate) -> bool:
    named = any(candidate.answers_to(name) for name in switch.names)
    match switch.effect:
        case "denies":
            return named
        case "allows":
            return not named and not candidate.file  # whoever gives a file with --plugin names it
    return False


def _reason(switch: Switch) -> str:
    return f"not among {switch.place}" if switch.effect == "allows" else f"disabled by {switch.place}"


def _cure(switch: Switch) -> str:
    if switch.effect == "allows":
        return f"add it to {switch.place}"
    return f"leave out {switch.place}" if switch.place.startswith("-") else f"take it out of {switch.place}"
