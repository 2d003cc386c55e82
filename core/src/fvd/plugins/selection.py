"""Which plugins the user has switched off, and where. A name that means no plugin is an error, not a shrug."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fvd.errors import PluginError, did_you_mean
from fvd.plugins.discovery import Candidate

DISABLE_VARIABLE = "FVD_DISABLE_PLUGINS"
ALLOW_VARIABLE = "FVD_PLUGINS"


@dataclass(frozen=True)
class Switch:
    """One place where plugins are named: a deny-list, or with ``allows`` an allow-list."""

    place: str
    names: tuple[str, ...]
    allows: bool


def find_switches(disable: Collection[str], only: Collection[str] | None, environment: Mapping[str, str]) -> list[Switch]:
    """All places that are in use. Each narrows what the others leave: a run file cannot widen FVD_PLUGINS."""
    switches = []
    if disable:
        switches.append(Switch("-p no:NAME", tuple(disable), allows=False))
    if only is not None:
        switches.append(Switch("plugins.only", tuple(only), allows=True))
    if DISABLE_VARIABLE in environment:
        switches.append(Switch(DISABLE_VARIABLE, _split(environment[DISABLE_VARIABLE]), allows=False))
    if ALLOW_VARIABLE in environment:
        switches.append(Switch(ALLOW_VARIABLE, _split(environment[ALLOW_VARIABLE]), allows=True))
    return switches


def _split(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def check_switches(switches: Sequence[Switch], candidates: Sequence[Candidate]) -> None:
    """Raise PluginError for names that mean no installed plugin, and for core among those to disable."""
    problems = []
    for switch in switches:
        for name in switch.names:
            named = [candidate for candidate in candidates if candidate.answers_to(name)]
            if not named:
                known = sorted({word for candidate in candidates for word in (candidate.name, candidate.distribution)})
                problems.append(f"{switch.place} names {name!r}, but no such plugin is installed{did_you_mean(name, known)}")
            elif not switch.allows and any(candidate.is_core for candidate in named):
                problems.append(f"{switch.place} names {name!r}: core cannot be disabled")
    if problems:
        raise PluginError("\n".join(problems), cure=f"Installed plugins: {', '.join(c.name for c in candidates) or 'none'}.")


def find_disabled(switches: Sequence[Switch], candidates: Sequence[Candidate]) -> dict[Candidate, str]:
    """The candidates that are not to be imported, with the reason."""
    disabled = {}
    for candidate in candidates:
        reasons = [_reason(switch) for switch in switches if _switches_off(switch, candidate)]
        if reasons and not candidate.is_core:
            disabled[candidate] = " and ".join(reasons)
    return disabled


def _switches_off(switch: Switch, candidate: Candidate) -> bool:
    named = any(candidate.answers_to(name) for name in switch.names)
    return named != switch.allows


def _reason(switch: Switch) -> str:
    return f"not among {switch.place}" if switch.allows else f"disabled by {switch.place}"
