"""What the subcommands share: records and descriptors as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from fvd.console import aligned
from fvd.plugins.findings import Finding, findings_of
from fvd.plugins.missing import noun
from fvd.plugins.registry import KINDS
from fvd.specs import Spec

if TYPE_CHECKING:
    from fvd.plugins import PluginRecord, Plugins

AnySpec = TypeVar("AnySpec", bound=Spec)


def record_as_dict(record: PluginRecord, kind: str | None = None) -> dict[str, object]:
    return {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "state": record.state,
        "code": record.code or None,
        "reason": record.reason or None,
        "cure": record.cure or None,
        "provides": provided(record, kind),
    }


def provided(record: PluginRecord, kind: str | None = None) -> list[str]:
    """``family:wan``, …; of one kind where that is given."""
    return [entry for entry in record.provides if kind is None or entry.partition(":")[0] == kind]


def labelled(plugins: Plugins, spec_class: type[AnySpec]) -> list[tuple[str, AnySpec]]:
    """Descriptors by what a run file calls them, sorted."""
    named = [(name, plugins.spec(spec_class.kind, name)) for name in plugins.names(spec_class.kind)]
    return [(name, spec) for name, spec in named if isinstance(spec, spec_class)]


def shared_findings(plugins: Plugins) -> Iterator[Finding]:
    """What concerns several plugins, or is no failure: names provided twice, commands out of reach, stale installations."""
    from fvd.cli.main import COMMANDS

    yield from findings_of(plugins)
    for spec in [spec for kind in KINDS for spec in plugins.behind_core(kind)]:
        message = f"{noun(spec.kind)} {spec.name!r} means core's; this one is reached as {plugins.name_of(spec)!r}"
        yield Finding(code="P07", plugin=str(plugins.owner(spec)), message=message)
    for spec in plugins.specs("command"):
        if spec.name in COMMANDS:
            owner = plugins.owner(spec)
            message = f"command {spec.name!r} is not reachable: core has a command of that name"
            yield Finding(code="W06", plugin=str(owner), message=message, cure="Its authors must name it otherwise.")


def pages_line(codes: Iterable[str]) -> Iterator[str]:
    """Where the codes are explained; nothing where there are none."""
    explained = sorted({code for code in codes if code})
    if explained:
        yield f"  `fvd plugins explain {' '.join(explained)}` says more"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}" for line in aligned(rows[0], rows[1:])]


def words(names: Collection[str]) -> str:
    return " ".join(sorted(names)) or "nothing"


def print_json(document: dict[str, object]) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))
