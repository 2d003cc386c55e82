"""What is wrong though every plugin is usable: names that two provide, installations that are out of date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fvd.plugins import missing
from fvd.plugins.hooks import HOOK_RETURNS
from fvd.plugins.installed import StaleEntryPoints, stale_plugins

if TYPE_CHECKING:
    from fvd.plugins.registry import Plugins


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


def findings_of(plugins: Plugins) -> Iterator[Finding]:
    """P07 and W02 of what is installed."""
    for spec_class in HOOK_RETURNS.values():
        for name, records in plugins.ambiguous(spec_class.kind).items():
            error = missing.ambiguous(spec_class.kind, name, records)
            yield Finding(code="P07", message=error.message.removesuffix(" [P07]"), cure=error.cure)
    for stale in stale_plugins(plugins):
        yield stale_finding(stale)


def stale_finding(stale: StaleEntryPoints) -> Finding:
    return Finding(code=stale.code, plugin=stale.distribution, message=stale.reason, cure=stale.cure)
