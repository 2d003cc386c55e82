"""`fvd plugins list|show|matrix`: what is installed, and whether it works. Plain text or JSON, never torch."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import fvd
from fvd.console import aligned
from fvd.errors import PluginError, did_you_mean
from fvd.plugins.fit import describe_fit
from fvd.plugins.registry import KINDS
from fvd.specs import FamilySpec, MethodSpec, Spec

if TYPE_CHECKING:
    from fvd.cli.main import Arguments
    from fvd.plugins import PluginRecord, Plugins

AnySpec = TypeVar("AnySpec", bound=Spec)


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="every installed plugin, its state and what it provides")
    listing.add_argument("--json", action="store_true", help="for tools")
    listing.add_argument("--kind", choices=KINDS, help="only plugins that provide this kind, and only that of them")
    listing.set_defaults(execute=_list)

    show = commands.add_parser("show", help="one plugin in full")
    show.add_argument("name", metavar="NAME", help="a plugin, or the distribution that it comes from")
    show.add_argument("--json", action="store_true", help="for tools")
    show.set_defaults(execute=_show)

    matrix = commands.add_parser("matrix", help="which methods run on which families")
    matrix.set_defaults(execute=_matrix)


# --- list ------------------------------------------------------------------------------------------------------------
def _list(args: Arguments) -> int:
    if args.json:
        _print_json(
            {
                "core": {"version": fvd.__version__},
                "plugins": [_as_dict(record, args.kind) for record in _providing(args.plugins, args.kind)],
            }
        )
    else:
        _print_listing(args.plugins, args.kind)
    return 0


def _providing(plugins: Plugins, kind: str | None) -> list[PluginRecord]:
    return [record for record in plugins.records if kind is None or _provides(record, kind)]


def _provides(record: PluginRecord, kind: str | None) -> list[str]:
    return [entry for entry in record.provides if kind is None or entry.partition(":")[0] == kind]


def _as_dict(record: PluginRecord, kind: str | None = None) -> dict[str, object]:
    return {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "state": record.state,
        "code": record.code or None,
        "reason": record.reason or None,
        "provides": _provides(record, kind),
    }


def _print_listing(plugins: Plugins, kind: str | None) -> None:
    usable = sum(record.state == "ok" for record in plugins.records)
    print(f"fvd-core {fvd.__version__}  ·  {usable} of {len(plugins.records)} plugins usable")
    records = _providing(plugins, kind)
    rows = [[r.name, r.distribution, r.version, r.state, _outcome(r, kind)] for r in records]
    lines = _align([["PLUGIN", "DISTRIBUTION", "VERSION", "STATE", "PROVIDES"], *rows])
    print(lines[0])
    for record, line in zip(records, lines[1:], strict=True):
        print(line)
        if record.cure:
            print(f"      cure: {record.cure}")
    for remark in _remarks(plugins):
        print(f"  ! {remark}")


def _outcome(record: PluginRecord, kind: str | None) -> str:
    if record.state != "ok":
        return f"{record.code} {record.reason}"
    return ", ".join(_provides(record, kind)) or "nothing"


def _remarks(plugins: Plugins) -> Iterable[str]:
    """What concerns several plugins, or is no failure."""
    from fvd.cli.main import COMMANDS

    for kind in KINDS:
        for name, records in plugins.ambiguous(kind).items():
            owners = sorted(record.distribution for record in records)
            choices = " or ".join(f"'{owner}:{name}'" for owner in owners)
            yield f"{kind} {name!r} is provided by {' and '.join(owners)}: write {choices} (P07)"
    for spec in plugins.specs("command"):
        if spec.name in COMMANDS:
            yield f"command {spec.name!r} of {plugins.owner(spec)} is not reachable: core has a command of that name"
    for record in plugins.records:
        yield from _heavy_remark(record)


def _heavy_remark(record: PluginRecord) -> Iterable[str]:
    if record.heavy:
        yield f"{record} loads {', '.join(record.heavy)} on import: every command pays for it (W01)"


# --- show ------------------------------------------------------------------------------------------------------------
def _show(args: Arguments) -> int:
    plugins = args.plugins
    records = [record for record in plugins.records if record.answers_to(args.name)]
    if not records:
        raise _no_such_plugin(plugins, args.name)
    if args.json:
        _print_json({"plugins": [_describe_plugin(plugins, record) for record in records]})
    else:
        for record in records:
            _print_plugin(plugins, record)
    return 0


def _no_such_plugin(plugins: Plugins, name: str) -> PluginError:
    from fvd.plugins.discovery import canonical
    from fvd.plugins.missing import catalogue

    known = {distribution for of_kind in catalogue().values() for distribution in of_kind.values()}
    for distribution in known:
        if canonical(name) == canonical(distribution):
            return PluginError(f"{distribution} is not installed", cure=f"python -m pip install {distribution}")
    installed = [record.name for record in plugins.records]
    words = installed + [record.distribution for record in plugins.records]
    return PluginError(f"there is no plugin {name!r}{did_you_mean(name, words)}", cure=f"Installed: {', '.join(installed)}.")


def _describe_plugin(plugins: Plugins, record: PluginRecord) -> dict[str, object]:
    specs = [spec for kind in KINDS for spec in plugins.specs(kind) if plugins.owner(spec) is record]
    extra = {"module": record.module, "cure": record.cure or None, "heavy": list(record.heavy)}
    return _as_dict(record) | extra | {"components": [_describe_component(plugins, spec) for spec in specs]}


def _describe_component(plugins: Plugins, spec: Spec) -> dict[str, object]:
    about: dict[str, object] = {"kind": spec.kind, "name": spec.name, "summary": spec.summary, "target": spec.target}
    if isinstance(spec, FamilySpec):
        about |= {
            "config": spec.config,
            "provides": sorted(spec.provides),
            "samplers": sorted(spec.samplers),
            "attn_kinds": sorted(spec.attn_kinds),
            "latent_space": spec.latent_space or None,
            "validator": spec.validator,
            "methods": {label: describe_fit(method, spec) for label, method in _labelled(plugins, MethodSpec)},
        }
    elif isinstance(spec, MethodSpec):
        about |= {
            "config": spec.config,
            "needs": sorted(spec.needs),
            "roles": {role: {"trainable": it.trainable, "needs": sorted(it.needs)} for role, it in spec.roles.items()},
            "families": {label: describe_fit(spec, family) for label, family in _labelled(plugins, FamilySpec)},
        }
    return about


def _print_plugin(plugins: Plugins, record: PluginRecord) -> None:
    print(f"{record}  {record.state}   entry point {record.module}")
    if record.state != "ok":
        print(f"  {record.code} {record.reason}")
    if record.cure:
        print(f"  cure: {record.cure}")
    for remark in _heavy_remark(record):
        print(f"  ! {remark}")
    for kind in KINDS:
        for spec in plugins.specs(kind):
            if plugins.owner(spec) is record:
                print(f"  {kind} {spec.name}: {spec.summary or '(no summary)'}")
                for label, text in _detail_rows(plugins, spec):
                    print(f"    {label:<12}  {text}")
                for line in _key_lines(plugins, spec):
                    print(f"    {line}")


def _detail_rows(plugins: Plugins, spec: Spec) -> list[tuple[str, str]]:
    rows = [("target", spec.target)]
    if isinstance(spec, FamilySpec):
        rows += [
            ("config", spec.config),
            ("provides", _words(spec.provides)),
            ("samplers", _words(spec.samplers)),
            ("attn_kinds", _words(spec.attn_kinds)),
            ("latent_space", spec.latent_space or "its own"),
            ("validator", spec.validator),
        ]
        rows += [("method", f"{label}: {describe_fit(it, spec)}") for label, it in _labelled(plugins, MethodSpec)]
    elif isinstance(spec, MethodSpec):
        rows += [("config", spec.config), ("needs", _words(spec.needs))]
        for role, it in spec.roles.items():
            rows.append(("role", f"{role}, {'trained' if it.trainable else 'frozen'}, needs {_words(it.needs)}"))
        rows += [("family", f"{label}: {describe_fit(spec, it)}") for label, it in _labelled(plugins, FamilySpec)]
    return rows


def _key_lines(plugins: Plugins, spec: Spec) -> Iterator[str]:
    """The keys of ``pipeline_config:`` or ``method_config:`` that this plugin reads."""
    if not isinstance(spec, (FamilySpec, MethodSpec)):
        return
    from fvd.config.document import describe_keys

    section = "pipeline_config" if isinstance(spec, FamilySpec) else "method_config"
    try:
        model = plugins.load_config(spec.kind, f"{plugins.owner(spec).distribution}:{spec.name}")
    except PluginError as error:
        yield f"{section}: {error.message}"
        return
    yield f"{section}:"
    for key, description in describe_keys(model):
        yield f"  {key}"
        yield from (f"      {line}" for line in textwrap.wrap(description, 110))


def _words(names: Collection[str]) -> str:
    return " ".join(sorted(names)) or "nothing"


# --- matrix ----------------------------------------------------------------------------------------------------------
def _matrix(args: Arguments) -> int:
    families = _labelled(args.plugins, FamilySpec)
    methods = _labelled(args.plugins, MethodSpec)
    if not families or not methods:
        print(f"Installed families: {len(families)}, methods: {len(methods)}; a run needs one of each.")
        print("`fvd plugins list` shows what is installed.")
        return 0
    rows = [[label, *(describe_fit(method, family) for _, method in methods)] for label, family in families]
    for line in _align([["FAMILY", *(label for label, _ in methods)], *rows]):
        print(line)
    return 0


def _labelled(plugins: Plugins, spec_class: type[AnySpec]) -> list[tuple[str, AnySpec]]:
    """Descriptors by what a run file calls them, sorted."""
    named = [(name, plugins.spec(spec_class.kind, name)) for name in plugins.names(spec_class.kind)]
    return [(name, spec) for name, spec in named if isinstance(spec, spec_class)]


# --- printing --------------------------------------------------------------------------------------------------------
def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}" for line in aligned(rows[0], rows[1:])]


def _print_json(document: dict[str, object]) -> None:
    import json

    print(json.dumps(document, indent=2, ensure_ascii=False))
