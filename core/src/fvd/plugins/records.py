"""What is known of one plugin: its record, for people and tools, and with it what was loaded."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from fvd.plugins.discovery import CORE_DISTRIBUTION, Candidate, State, Unusable, canonical, means
from fvd.plugins.hooks import PluginHooks
from fvd.specs import Spec


@dataclass(frozen=True, kw_only=True)
class PluginRecord:
    """One plugin and what became of it.

    module: its entry point's value. code: ``P02`` and so on, empty when ok; `fvd plugins explain` has a page for each. reason,
    cure: one line each, for people. provides: ``family:wan``, one for each descriptor. file: the path of a local
    plugin (``--plugin FILE``), else empty.
    """

    name: str
    distribution: str
    version: str
    module: str
    state: State = "ok"
    code: str = ""
    reason: str = ""
    cure: str = ""
    provides: tuple[str, ...] = ()
    file: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"

    def verdict(self) -> str:
        """``plugin ltx (acme-ltx 1.0) is broken: why [P03]``, for one that is not ok."""
        if self.state == "disabled":
            return f"plugin {self} is {self.reason} [{self.code}]"
        state = "in conflict" if self.state == "conflict" else self.state
        return f"plugin {self} is {state}: {self.reason} [{self.code}]"

    @property
    def usable(self) -> bool:
        """Whether what it provides can be used; a slow plugin's can."""
        return self.state in ("ok", "slow")

    @property
    def of_core(self) -> bool:
        """Whether it comes with core: a name that it provides is core's, whoever else provides it."""
        return canonical(self.distribution) == CORE_DISTRIBUTION

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` means this plugin: its entry point, its distribution or ``distribution:entry_point``, in any
        spelling."""
        return means(name, self.name, self.distribution)


@dataclass(frozen=True)
class LoadedPlugin:
    """A record with what was loaded for it; module and hooks are None unless the record is usable.

    failure: the exception that made the plugin unusable, with the traceback of the plugin's own code as its cause.
    """

    record: PluginRecord
    module: ModuleType | None = None
    hooks: PluginHooks | None = None
    specs: tuple[Spec, ...] = ()
    failure: Unusable | None = None


def make_record(candidate: Candidate, finding: Unusable | None, specs: tuple[Spec, ...] = ()) -> PluginRecord:
    """finding: what is wrong, or None."""
    return PluginRecord(
        name=candidate.name,
        distribution=candidate.distribution,
        version=candidate.version,
        module=candidate.module,
        state=finding.state if finding else "ok",
        code=finding.code if finding else "",
        reason=finding.reason if finding else "",
        cure=finding.cure if finding else "",
        provides=tuple(f"{spec.kind}:{spec.name}" for spec in specs),
        file=candidate.file,
    )
