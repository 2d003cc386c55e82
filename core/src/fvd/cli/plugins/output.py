"""What the subcommands share: records and descriptors as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from fvd.console import aligned
from fvd.plugins.registry import KINDS
from fvd.specs import Spec

if TYPE_CHECKING:
    from fvd.plugins import PluginRecord, Plugins
    from fvd.plugins.installed import StaleEntryPoints

AnySpec = TypeVar("AnySpec", bound=Spec)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a person should know: of one plugin, or (then ``plugin`` is empty) of several or of the machine."""

    code: str
    message: str
    plugin: str = ""
    cure: str = ""

    def lines(self, mark: str) -> Iterator[str]:
        head = " ".join(part for part in (mark, self.code, f"{self.plugin}:" if self.plugin else "", self.message) if part)
        yield f"  {head}"
        if self.cure:
            yield f"      cure: {self.cure}"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


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
    from fvd.plugins import missing
    from fvd.plugins.installed import stale_plugins

    for kind in KINDS:
        for name, records in plugins.ambiguous(kind).items():
            error = missing.ambiguous(kind, name, records)
            yield Finding(code="P07", message=error.message.removesuffix(" [P07]"), cure=error.cure)
    for spec in plugins.specs("command"):
        if spec.name in COMMANDS:
            owner = plugins.owner(spec)
            message = f"command {spec.name!r} is not reachable: core has a command of that name"
            yield Finding(code="", plugin=str(owner), message=message, cure="Its authors must name it otherwise.")
    for stale in stale_plugins(plugins):
        yield stale_finding(stale)


def stale_finding(stale: StaleEntryPoints) -> Finding:
    return Finding(code=stale.code, plugin=stale.distribution, message=stale.reason, cure=stale.cure)


def pages_line(codes: Iterable[str]) -> Iterator[str]:
    """Where the codes are explained; nothing where there are none."""
    pages = sorted({f"{code}.md" for code in codes if code})
    if pages:
        yield f"  see docs/errors: {', '.join(pages)}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}" for line in aligned(rows[0], rows[1:])]


def words(names: Collection[str]) -> str:
    return " ".join(sorted(names)) or "nothing"


def print_json(document: dict[str, object]) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))
