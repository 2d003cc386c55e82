"""`Plugins`: everything that is installed, by name."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fvd.errors import PluginError, Problem
from fvd.plugins.discovery import (
    Candidate,
    State,
    Unusable,
    canonical,
    check_conflict,
    check_core_version,
    check_entry_point,
    find_candidates,
)
from fvd.plugins.loading import (
    HOOK_RETURNS,
    HookManager,
    caller_of_one,
    collect_specs,
    describe,
    import_plugin,
    register_plugin,
)
from fvd.plugins.selection import check_switches, find_disabled, find_switches
from fvd.specs import FamilySpec, MethodSpec, Spec

if TYPE_CHECKING:
    from fvd.config.check import CheckContext

KINDS = tuple(spec_class.kind for spec_class in HOOK_RETURNS.values())
"""``family``, ``method``, ``sampler``, …"""


@dataclass(frozen=True, kw_only=True)
class PluginRecord:
    """One installed plugin and what became of it.

    module: its entry point's value. code: ``P02`` and so on, empty when ok. reason, cure: one line each, for people.
    provides: ``family:wan``, one for each descriptor. heavy: modules like torch that its light module loaded, which it
    must not.
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
    heavy: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` means this plugin: its distribution or its entry point, in any spelling."""
        return canonical(name) in (canonical(self.distribution), canonical(self.name))


@dataclass(frozen=True)
class LoadedPlugin:
    """A record with what was loaded for it; module is None unless the state is ok."""

    record: PluginRecord
    module: ModuleType | None = None
    specs: tuple[Spec, ...] = ()


def load_plugins(*, disable: Collection[str] = (), only: Collection[str] | None = None) -> Plugins:
    """Load every installed plugin that is not switched off, each on its own: one that fails becomes a record.

    disable: names (distribution or entry point, in any spelling) not to import. only: if given, import no other than
    these and core. FVD_DISABLE_PLUGINS and FVD_PLUGINS (unset: all; empty: none but core; a list: only those) apply
    as well. Raises PluginError for a name that means no installed plugin.
    """
    candidates = find_candidates()
    switches = find_switches(disable, only, os.environ)
    check_switches(switches, candidates)
    disabled = find_disabled(switches, candidates)
    enabled = [candidate for candidate in candidates if candidate not in disabled]
    manager = HookManager()
    # What a plugin prints while it loads must not end up in the output of `fvd plugins list --json`.
    with contextlib.redirect_stdout(sys.stderr):
        loaded = [_load_plugin(manager, candidate, enabled, disabled) for candidate in candidates]
    return Plugins(manager, loaded)


def _load_plugin(
    manager: HookManager, candidate: Candidate, enabled: Collection[Candidate], disabled: dict[Candidate, str]
) -> LoadedPlugin:
    heavy: tuple[str, ...] = ()
    try:
        if candidate in disabled:
            raise Unusable("disabled", "P10", disabled[candidate])
        check_entry_point(candidate)
        check_conflict(candidate, enabled)
        check_core_version(candidate)
        module, heavy = import_plugin(candidate)
        register_plugin(manager, candidate, module)
        specs = collect_specs(manager, candidate, module)
    except Unusable as unusable:
        return LoadedPlugin(_record(candidate, unusable, (), heavy))
    return LoadedPlugin(_record(candidate, None, specs, heavy), module, specs)


def _record(candidate: Candidate, unusable: Unusable | None, specs: tuple[Spec, ...], heavy: tuple[str, ...]) -> PluginRecord:
    return PluginRecord(
        name=candidate.name,
        distribution=candidate.distribution,
        version=candidate.version,
        module=candidate.module,
        state=unusable.state if unusable else "ok",
        code=unusable.code if unusable else "",
        reason=unusable.reason if unusable else "",
        cure=unusable.cure if unusable else "",
        provides=tuple(f"{spec.kind}:{spec.name}" for spec in specs),
        heavy=heavy,
    )


class Plugins:
    """The plugins of one process. Names are short (``wan``), or qualified by a distribution (``acme-wan:wan``)."""

    def __init__(self, manager: HookManager, loaded: list[LoadedPlugin]) -> None:
        self._manager = manager
        self._loaded = loaded
        self._reported: set[tuple[str, str]] = set()

    # --- what there is ---
    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """All installed plugins, usable or not, sorted by (distribution, name)."""
        return tuple(plugin.record for plugin in self._loaded)

    def specs(self, kind: str) -> list[Spec]:
        """All descriptors of a kind, ambiguous names included."""
        return [spec for _, spec in self._of_kind(kind)]

    def names(self, kind: str) -> list[str]:
        """What a run file may say, sorted: short names, and qualified ones where a short name is ambiguous."""
        ambiguous = self.ambiguous(kind)
        pairs = self._of_kind(kind)
        return sorted(f"{record.distribution}:{spec.name}" if spec.name in ambiguous else spec.name for record, spec in pairs)

    def ambiguous(self, kind: str) -> dict[str, list[PluginRecord]]:
        """Short names that several plugins provide, with those plugins. Nobody wins them."""
        providers: dict[str, list[PluginRecord]] = {}
        for record, spec in self._of_kind(kind):
            providers.setdefault(spec.name, []).append(record)
        return {name: records for name, records in providers.items() if len(records) > 1}

    def owner(self, spec: Spec) -> PluginRecord:
        """The plugin that a descriptor came from. Raises ValueError for one that is not from here."""
        for plugin in self._loaded:
            if any(spec is own for own in plugin.specs):
                return plugin.record
        raise ValueError(f"{spec.kind} {spec.name!r} is not a descriptor of an installed plugin")

    # --- by name ---
    def spec(self, kind: str, name: str) -> Spec:
        """The descriptor that ``name`` means. Raises PluginError: unknown, unusable, not installed, or ambiguous."""
        found = self._find(kind, name)
        if len(found) == 1:
            return found[0][1]
        from fvd.plugins import missing

        if found:
            raise missing.ambiguous(kind, name, [record for record, _ in found])
        raise missing.unknown(self, kind, name)

    def load(self, kind: str, name: str) -> Any:
        """Import what the descriptor's target names. Raises PluginError naming distribution, version and target."""
        spec = self.spec(kind, name)
        loaded = self._import_target(spec, spec.target)
        if not callable(loaded):
            raise self._misdescribed(spec, f"{spec.target} is not callable")
        return loaded

    def load_config(self, kind: str, name: str) -> Any:
        """Import the config model of a family or a method."""
        spec = self.spec(kind, name)
        if not isinstance(spec, (FamilySpec, MethodSpec)):
            raise ValueError(f"a {kind} has no config model")
        from fvd.config.models import MethodConfig, PipelineConfig

        model = self._import_target(spec, spec.config)
        wanted = PipelineConfig if isinstance(spec, FamilySpec) else MethodConfig
        if not isinstance(model, type) or not issubclass(model, wanted):
            raise self._misdescribed(spec, f"{spec.config} is not a subclass of fvd.{wanted.__name__}")
        return model

    def _misdescribed(self, spec: Spec, what: str) -> PluginError:
        owner = self.owner(spec)
        cure = f"Report it to the authors of {owner.distribution}."
        return PluginError(f"{spec.kind} {spec.name!r} of plugin {owner}: {what} [P09]", cure=cure)

    def _import_target(self, spec: Spec, target: str) -> Any:
        from fvd.plugins.targets import import_target

        return import_target(self.owner(spec), f"{spec.kind} {spec.name!r}", target)

    def _of_kind(self, kind: str) -> list[tuple[PluginRecord, Spec]]:
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; kinds are {', '.join(KINDS)}")
        return [(plugin.record, spec) for plugin in self._loaded for spec in plugin.specs if spec.kind == kind]

    def _find(self, kind: str, name: str) -> list[tuple[PluginRecord, Spec]]:
        qualifier, colon, short = name.rpartition(":")
        found = [(record, spec) for record, spec in self._of_kind(kind) if spec.name == short]
        if not colon:
            return found
        # A distribution first: the plugin of another distribution may go by the same word.
        of_distribution = [pair for pair in found if canonical(pair[0].distribution) == canonical(qualifier)]
        return of_distribution or [pair for pair in found if canonical(pair[0].name) == canonical(qualifier)]

    # --- hooks ---
    def check_config(self, ctx: CheckContext) -> list[Problem]:
        """What the plugins find in a run file. A check that fails is itself a finding that names its plugin: an error where
        the run uses that plugin, else a warning."""
        problems: list[Problem] = []
        used = {self.owner(spec) for spec in (ctx.method, *ctx.families.values())}
        for record, call in self._callers("fvd_check_config"):
            try:
                found = [problem for result in call(ctx=ctx) for problem in result]
                strangers = [type(item).__name__ for item in found if not isinstance(item, Problem)]
                if strangers:
                    raise TypeError(f"fvd_check_config() must return a list of Problem, got {', '.join(strangers)} in it")
                problems += found
            except (Exception, SystemExit) as error:
                message = f"plugin {record}: its check of the run file failed: {describe(error)}"
                cure = f"Report it to the authors of {record.distribution}."
                problems.append(Problem(message=message, cure=cure, severity="error" if record in used else "warning"))
        return problems

    def notify(self, hook_name: str, **kwargs: object) -> None:
        """Tell every plugin. One that fails is logged, once for each hook, and the run goes on."""
        for record, call in self._callers(hook_name):
            try:
                call(**kwargs)
            except (Exception, SystemExit):
                self._report_once(record, hook_name)

    def _report_once(self, record: PluginRecord, hook_name: str) -> None:
        import logging

        place = (f"{record.distribution}:{record.name}", hook_name)
        if place not in self._reported:
            self._reported.add(place)
            logging.getLogger("fvd.plugins").exception("plugin %s failed in %s; the run goes on", record, hook_name)

    def _callers(self, hook_name: str) -> Iterator[tuple[PluginRecord, Any]]:
        if hook_name not in self._manager.hook_names:
            raise ValueError(f"unknown hook {hook_name!r}")
        for plugin in self._loaded:
            if plugin.module is not None:
                yield plugin.record, caller_of_one(self._manager, plugin.module, hook_name)
