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
from fvd.plugins.faults import describe, import_failure, place_in
from fvd.plugins.hooks import HOOK_NAMES, HOOK_RETURNS, PluginHooks, call_descriptor_hook
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
        if candidate.file and not hooks.implemented:
            raise _without_hooks()
        specs = _collect_specs(hooks, candidate, module)
        if module not in _SLOW:
            _SLOW[module] = _slow(candidate, {*sys.modules} - before | {candidate.module}, time.perf_counter() - start)
    except Unusable as unusable:
        return LoadedPlugin(make_record(candidate, unusable), failure=unusable)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # code and metadata of strangers: nothing that they do may end the program
        unforeseen = _unforeseen(candidate, error)
        return LoadedPlugin(make_record(candidate, unforeseen), failure=unforeseen)
    return LoadedPlugin(make_record(candidate, _SLOW[module], specs), module, hooks, specs)


def _import(candidate: Candidate) -> ModuleType:
    if candidate.file:
        make_importable(candidate)
    try:
        with measure(str(candidate), "import"):
            module = import_module(candidate.module)
    except KeyboardInterrupt:
        raise
    # A plugin that calls sys.exit() on import, or whose extension panics, must not end the program either.
    except BaseException as error:
        raise import_failure(candidate.distribution, candidate.module, error) from error
    if not isinstance(module, ModuleType):
        reason = f"import failed: {candidate.module} puts {type(module).__name__} in the place of its module"
        raise Unusable("broken", "P03", reason, ask_the_authors(candidate.distribution))
    return module


def _unforeseen(candidate: Candidate, error: BaseException) -> Unusable:
    reason = f"cannot be loaded: {describe(error)}{place_in(candidate.module, error)}"
    unforeseen = Unusable("broken", "P03", reason, ask_the_authors(candidate.distribution))
    unforeseen.__cause__ = error
    return unforeseen


def _without_hooks() -> Unusable:
    """P04 for a local file: who names one with ``--plugin`` expects something of it."""
    return Unusable("broken", "P04", "it implements no hook", f"Mark one with @fvd.hookimpl: {', '.join(sorted(HOOK_NAMES))}.")


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
