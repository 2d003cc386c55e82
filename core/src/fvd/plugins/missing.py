"""A name that was not found: what is missing, and what to do about it, in two lines.

Which distribution provides what is read from ``catalogue.json`` alone. A command to install is never made up from the
name that a run file asks for: anybody could have taken that name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fvd.errors import PluginError, did_you_mean
from fvd.plugins.discovery import canonical

if TYPE_CHECKING:
    from fvd.plugins.registry import PluginRecord, Plugins

PLURALS = {
    "family": "families",
    "method": "methods",
    "sampler": "samplers",
    "validator": "validators",
    "dataset_kind": "dataset kinds",
    "tracker": "trackers",
    "command": "commands",
}


def catalogue() -> dict[str, dict[str, str]]:
    """``{"family": {"wan": "fvd-wan"}, …}``: well-known components and the distributions that provide them."""
    text = Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8")
    known: dict[str, dict[str, str]] = json.loads(text)
    return known


def ambiguous(kind: str, name: str, records: list[PluginRecord]) -> PluginError:
    """Several plugins provide ``name`` (P07)."""
    short = name.rpartition(":")[2]
    distributions = sorted({record.distribution for record in records})
    # Two plugins of one distribution are told apart by plugin name.
    qualifiers = distributions if len(distributions) == len(records) else sorted(record.name for record in records)
    choices = " or ".join(f"'{qualifier}:{short}'" for qualifier in qualifiers)
    return PluginError(
        f"{noun(kind)} {name!r} is provided by {' and '.join(qualifiers)}: nobody wins [P07]",
        cure=f"Write {choices}, or disable one of them, as in `-p no:{qualifiers[0]}`.",
    )


def unknown(plugins: Plugins, kind: str, name: str) -> PluginError:
    """No usable plugin provides ``name`` (P08)."""
    qualifier, _, short = name.rpartition(":")
    known = catalogue().get(kind, {})
    installed = plugins.names(kind)
    culprits = _culprits(plugins, qualifier or known.get(short, ""), short)
    if culprits:
        return PluginError(
            f"{noun(kind)} {name!r} is not available: " + "; ".join(record.verdict() for record in culprits),
            cure=" ".join(record.cure for record in culprits if record.cure) or "Enable the plugin.",
        )
    if canonical(short) in (canonical(plugin) for plugin in plugins.on_request):
        return PluginError(
            f"{noun(kind)} {name!r} is not loaded: plugin {short} is loaded on request only [P08]",
            cure=f"Ask for it: -p {short}",
        )
    listing = f"installed {PLURALS[kind]}: {', '.join(installed) or 'none'}"
    if short in known and canonical(qualifier or known[short]) == canonical(known[short]):
        return PluginError(
            f"{noun(kind)} {name!r} is not installed ({listing}) [P08]",
            cure=f"It is provided by {known[short]}: python -m pip install {known[short]}",
        )
    return PluginError(
        f"there is no {noun(kind)} {name!r}{did_you_mean(name, [*installed, *known])}; {listing} [P08]",
        cure=_cure_for_unknown(short, known),
    )


def _cure_for_unknown(name: str, known: dict[str, str]) -> str:
    if not known:
        return "`fvd plugins list` shows every installed plugin and what it provides."
    offers = ", ".join(f"{component} ({distribution})" for component, distribution in sorted(known.items()))
    return f"Distributions known to provide one: {offers}; `fvd plugins list` shows what is installed."


def _culprits(plugins: Plugins, distribution: str, name: str) -> list[PluginRecord]:
    """Unusable plugins that would have provided the name: by distribution where that is known, else by their name."""
    unusable = [record for record in plugins.records if not record.usable]
    if distribution:
        found = [record for record in unusable if record.answers_to(distribution)]
        if found:
            return found
    return [record for record in unusable if record.answers_to(name)]


def noun(kind: str) -> str:
    """``dataset_kind`` for people."""
    return kind.replace("_", " ")
