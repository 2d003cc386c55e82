"""One plugin: import its module, check its hooks, collect its descriptors. A failure becomes its state."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping
from importlib import import_module
from types import ModuleType
from weakref import WeakKeyDictionary

from fvd.plugins.discovery import (
    Candidate,
    Unusable,
    ask_the_authors,
    check_conflict,
    check_core_version,
    check_entry_point,
)
from fvd.plugins.faults import import_failure
from fvd.plugins.hooks import HOOK_RETURNS, PluginHooks, call_descriptor_hook
from fvd.plugins.local import make_importable
from fvd.plugins.records import LoadedPlugin, make_record
from fvd.plugins.trace import measure
from fvd.plugins.weight import heavy_among
from fvd.specs import Spec

_SLOW: WeakKeyDictionary[ModuleType, Unusable | None] = WeakKeyDictionary()
"""What was found when a module was imported: a second look in the same process would not see the import again."""


def load_plugin(candidate: Candidate, enabled: Collection[Candidate], disabled: Mapping[Candidate, Unusable]) -> LoadedPlugin:
    """enabled: who may conflict with it. disabled: candidates that are not to be imported, and why."""
    try:
        if candidate in disabled:
            raise disabled[candidate]
        check_entry_point(candidate)
        check_conflict(candidate, enabled)
        check_core_version(candidate)
        before, start = set(sys.modules), time.perf_counter()
        module = _import(candidate)
        hooks = PluginHooks(module, candidate.distribution)
        specs = _collect_specs(hooks, candidate, module)
        if module not in _SLOW:
            _SLOW[module] = _slow(candidate, {*sys.modules} - before | {candidate.module}, time.perf_counter() - start)
    except Unusable as unusable:
        return LoadedPlugin(make_record(candidate, unusable), failure=unusable)
    return LoadedPlugin(make_record(candidate, _SLOW[module], specs), module, hooks, specs)


def _import(candidate: Candidate) -> ModuleType:
    if candidate.file:
        make_importable(candidate)
    try:
        with measure(str(candidate), "import"):
            return import_module(candidate.module)
    # A plugin that calls sys.exit() on import must not end the program either.
    except (Exception, SystemExit) as error:
        raise import_failure(candidate.distribution, candidate.module, error) from error


def _slow(candidate: Candidate, new_modules: Collection[str], seconds: float) -> Unusable | None:
    """W01. A local file may import what it likes: it is loaded only where somebody names it."""
    heavy = set() if candidate.file else heavy_among(new_modules)
    if not heavy:
        return None
    return Unusable(
        "slow",
        "W01",
        f"loads {', '.join(sorted(heavy))} on import ({seconds * 1e3:.0f} ms), and every command pays for it",
        f"It can be used. Its authors should keep {candidate.module} light, and import the rest in what descriptors name.",
    )


def _collect_specs(hooks: PluginHooks, candidate: Candidate, module: ModuleType) -> tuple[Spec, ...]:
    specs: list[Spec] = []
    for hook in HOOK_RETURNS:
        if hooks.caller(hook):
            with measure(str(candidate), hook):
                specs += call_descriptor_hook(hooks, hook, module, candidate.distribution)
    names = [f"{spec.kind} {spec.name!r}" for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Unusable("broken", "P05", f"provides {', '.join(twice)} more than once", ask_the_authors(candidate.distribution))
    return tuple(specs)
