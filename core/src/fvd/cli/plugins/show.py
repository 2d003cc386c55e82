"""`fvd plugins show NAME`: a plugin with all its components, or one component."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fvd.cli.plugins.component import describe_component, facts_of
from fvd.cli.plugins.output import print_json, record_as_dict, shared_findings
from fvd.errors import PluginError, did_you_mean
from fvd.plugins.discovery import canonical
from fvd.plugins.missing import noun
from fvd.plugins.registry import KINDS, split_kind
from fvd.specs import Spec

if TYPE_CHECKING:
    from fvd.cli.main import Arguments
    from fvd.config.document import Key
    from fvd.plugins import PluginRecord, Plugins


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="a plugin, its distribution, or a component, as in wan, acme-wan:wan or family:wan"
    )
    parser.add_argument("--json", action="store_true", help="for tools")
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    plugins = args.load_plugins_with(split_kind(args.name)[1])  # one that is loaded on request only may be shown
    chosen = _find(plugins, args.name)
    if args.json:
        print_json({"plugins": [_describe(plugins, record, specs) for record, specs in chosen]})
        return 0
    for record, specs in chosen:
        for line in _lines(plugins, record, specs):
            print(line)
    return 0


def _find(plugins: Plugins, name: str) -> list[tuple[PluginRecord, list[Spec]]]:
    """The plugins that answer to ``name`` with all their components; else those that provide a component of that name, with
    that alone. Raises PluginError where there is neither."""
    owned = [(plugins.owner(spec), spec) for kind in KINDS for spec in plugins.specs(kind)]
    records = [record for record in plugins.records if record.answers_to(name)]
    if records:
        return [(record, [spec for owner, spec in owned if owner is record]) for record in records]
    found: dict[PluginRecord, list[Spec]] = {}
    for spec in plugins.meant_by(name):
        found.setdefault(plugins.owner(spec), []).append(spec)
    if not found:
        raise _nothing_of_that_name(plugins, name)
    return [(record, found[record]) for record in plugins.records if record in found]


def _nothing_of_that_name(plugins: Plugins, name: str) -> PluginError:
    from fvd.plugins.missing import catalogue
    from fvd.plugins.pages import titles

    if name.upper() in titles():
        return PluginError(f"{name} is a code, not a plugin", cure=f"`fvd plugins explain {name.upper()}` says what it means.")
    for of_kind in catalogue().values():
        for component, distribution in of_kind.items():
            if canonical(name) in (canonical(distribution), canonical(component)):
                return PluginError(f"{distribution} is not installed", cure=f"python -m pip install {distribution}")
    installed = [record.name for record in plugins.records]
    components = sorted(f"{kind}:{component}" for kind in KINDS for component in plugins.names(kind))
    words = [*installed, *(record.distribution for record in plugins.records), *components]
    words += [component.partition(":")[2] for component in components]
    return PluginError(
        f"there is no plugin or component {name!r}{did_you_mean(name, words)}",
        cure=f"Plugins: {', '.join(installed)}.\nComponents: {', '.join(components) or 'none'}.",
    )


# --- for tools -------------------------------------------------------------------------------------------------------
def _describe(plugins: Plugins, record: PluginRecord, specs: list[Spec]) -> dict[str, object]:
    from dataclasses import asdict

    from fvd.plugins.sources import find_source

    return {
        **record_as_dict(record),
        "module": record.module,
        "source": asdict(find_source(record)),
        "components": [describe_component(plugins, spec) for spec in specs],
    }


# --- for people ------------------------------------------------------------------------------------------------------
def _lines(plugins: Plugins, record: PluginRecord, specs: list[Spec]) -> Iterator[str]:
    from fvd.plugins.sources import find_source

    yield f"{record}  {record.state}   entry point {record.module}"
    yield f"  installed from {find_source(record)}"
    if record.code:
        yield f"  {record.code} {record.reason}"
    if record.cure:
        yield f"  cure: {record.cure}"
    for finding in shared_findings(plugins):
        if finding.plugin == str(record):
            yield from finding.lines("!")
    for spec in specs:
        yield f"  {noun(spec.kind)} {spec.name}: {spec.summary or '(no summary)'}"
        yield from (f"    {line}" for line in _component_lines(plugins, spec))


def _component_lines(plugins: Plugins, spec: Spec) -> Iterator[str]:
    facts = facts_of(plugins, spec)
    for label, text in facts.rows:
        yield f"{label:<14}  {text}"
    if facts.section:
        yield f"{facts.section}:{f' {facts.problem}' if facts.problem else '' if facts.keys else ' it has no keys'}"
    for key in facts.keys:
        yield from _key_lines(key, "  ")


def _key_lines(key: Key, indent: str) -> Iterator[str]:
    yield f"{indent}{key}"
    yield from (f"{indent}    {line}" for line in textwrap.wrap(key.description, 110))
    for inner in key.keys:
        yield from _key_lines(inner, f"{indent}    ")
