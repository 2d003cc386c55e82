"""One plugin: import its light module, check its hooks, collect its descriptors. A failure becomes its state.

Traps that pluggy leaves open are closed here: a misspelt hook name, keyword-only arguments, a forgotten marker and a
hook that returns nothing would all register silently, and the author would see "nothing happens".
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import pluggy

from fvd import hookspecs
from fvd.errors import did_you_mean
from fvd.plugins.discovery import Candidate, Unusable
from fvd.specs import (
    CommandSpec,
    DatasetKindSpec,
    FamilySpec,
    MethodSpec,
    SamplerSpec,
    Spec,
    TrackerSpec,
    ValidatorSpec,
)

HOOK_RETURNS: dict[str, type[Spec]] = {
    "fvd_families": FamilySpec,
    "fvd_methods": MethodSpec,
    "fvd_samplers": SamplerSpec,
    "fvd_validators": ValidatorSpec,
    "fvd_dataset_kinds": DatasetKindSpec,
    "fvd_trackers": TrackerSpec,
    "fvd_commands": CommandSpec,
}
"""What the items of each descriptor hook's list are."""

HEAVY_MODULES = frozenset({"torch", "diffusers", "transformers", "numpy", "pydantic", "yaml", "tensorflow", "jax"})
"""What a plugin's light module must not load: every `fvd` command would pay for it."""


class HookManager(pluggy.PluginManager):
    """A pluggy manager that looks only at what a plugin's module defines, so that registering never sets off a lazy
    module attribute (pluggy 1.6 evaluates all of them)."""

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs)
        self.hook_names = frozenset(name for name in vars(hookspecs) if name.startswith("fvd_"))

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name in vars(plugin) else None


def import_plugin(candidate: Candidate) -> tuple[ModuleType, tuple[str, ...]]:
    """The plugin's module, and which heavy modules came with it. Raises Unusable (P03)."""
    before = HEAVY_MODULES & sys.modules.keys()
    try:
        module = import_module(candidate.module)
    # A plugin that calls sys.exit() on import must not end the program either.
    except (Exception, SystemExit) as error:
        raise _import_failure(candidate, error) from error
    return module, tuple(sorted((HEAVY_MODULES & sys.modules.keys()) - before))


def _import_failure(candidate: Candidate, error: BaseException) -> Unusable:
    reinstall = f"python -m pip install {candidate.distribution}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        if same_package(error.name, candidate.module):
            reason = f"module {error.name!r} is not there{place_in(candidate.module, error)}"
            return Unusable("broken", "P03", reason, f"{reinstall} --force-reinstall --no-deps")
        reason = f"import failed: missing dependency {error.name!r}{place_in(candidate.module, error)}"
        return Unusable("broken", "P03", reason, f"{reinstall}   (brings the dependencies that it declares)")
    reason = f"import failed: {describe(error)}{place_in(candidate.module, error)}"
    return Unusable("broken", "P03", reason, f"Report it to the authors of {candidate.distribution}, or disable it.")


def same_package(one: str, other: str) -> bool:
    return one.partition(".")[0] == other.partition(".")[0]


def describe(error: BaseException) -> str:
    """``ValueError: what it says``, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_in(module: str, error: BaseException) -> str:
    """`` (fvd_x.plugin, line 12)``: the innermost frame in the module's own package, or nothing."""
    place, step = "", error.__traceback__
    while step is not None:
        name = str(step.tb_frame.f_globals.get("__name__", ""))
        if same_package(name, module):
            place = f" ({name}, line {step.tb_lineno})"
        step = step.tb_next
    return place


def register_plugin(manager: HookManager, candidate: Candidate, module: ModuleType) -> None:
    """Check the hook implementations and register them. Raises Unusable (P04)."""
    members = sorted(vars(module).items())
    problems = [problem for name, value in members for problem in _hook_problems(manager, module, name, value)]
    if problems:
        cure = f"Report it to the authors of {candidate.distribution}; it may be made for another version of fvd-core."
        raise Unusable("broken", "P04", "; ".join(problems), cure)
    try:
        manager.register(module, name=f"{candidate.distribution}:{candidate.name}")
    except Exception as error:  # pluggy's own validation; what it raises differs between versions
        reason = f"its hooks cannot be registered: {describe(error)}"
        raise Unusable("broken", "P04", reason, f"Report it to the authors of {candidate.distribution}.") from error


def _hook_problems(manager: HookManager, module: ModuleType, name: str, value: object) -> list[str]:
    options = manager.parse_hookimpl_opts(module, name)
    if options is None:
        forgotten = name in manager.hook_names and inspect.isfunction(value) and value.__module__ == module.__name__
        return [f"{name}() is not marked with @fvd.hookimpl"] if forgotten else []
    hook = options.get("specname") or name
    if hook not in manager.hook_names:
        return [f"unknown hook {hook!r}{did_you_mean(hook, manager.hook_names)}"]
    return _signature_problems(hook, value) if callable(value) else [f"hook {hook!r} is not a function"]


def _signature_problems(hook: str, function: Callable[..., object]) -> list[str]:
    if inspect.iscoroutinefunction(function):
        return [f"{hook}() must not be async"]
    offered = inspect.signature(vars(hookspecs)[hook]).parameters
    problems = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            problems.append(f"{hook}(): argument {parameter.name!r} must not be keyword-only")
        elif parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            problems.append(f"{hook}(): `{parameter}` receives nothing; name the arguments")
        elif parameter.name not in offered and parameter.default is parameter.empty:
            allowed = ", ".join(offered) or "none"
            problems.append(f"{hook}(): unknown argument {parameter.name!r} (this version offers: {allowed})")
    return problems


def collect_specs(manager: HookManager, candidate: Candidate, module: ModuleType) -> tuple[Spec, ...]:
    """The descriptors of one plugin. Raises Unusable (P05 for what it returns, P03 for what it imports)."""
    specs: list[Spec] = []
    for hook, spec_class in HOOK_RETURNS.items():
        specs += _call_descriptor_hook(manager, candidate, module, hook, spec_class)
    names = [f"{spec.kind} {spec.name!r}" for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Unusable("broken", "P05", f"provides {', '.join(twice)} more than once", _report(candidate))
    return tuple(specs)


def _call_descriptor_hook(
    manager: HookManager, candidate: Candidate, module: ModuleType, hook: str, spec_class: type[Spec]
) -> list[Spec]:
    caller = caller_of_one(manager, module, hook)
    implementations = [one for one in caller.get_hookimpls() if not (one.wrapper or one.hookwrapper)]
    if not implementations:
        return []
    try:
        results = caller()
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError):
            raise _import_failure(candidate, error) from error
        reason = f"{hook}(): {describe(error)}{place_in(candidate.module, error)}"
        raise Unusable("broken", "P05", reason, _report(candidate)) from error
    wanted = f"must return a list of {spec_class.__name__}"
    if len(results) != len(implementations):  # pluggy drops None
        raise Unusable("broken", "P05", f"{hook}() {wanted}, got None", _report(candidate))
    for result in results:
        if not isinstance(result, Sequence) or isinstance(result, str):
            raise Unusable("broken", "P05", f"{hook}() {wanted}, got {type(result).__name__}", _report(candidate))
        for item in result:
            if not isinstance(item, spec_class):
                got = f"{type(item).__name__} in the list"
                raise Unusable("broken", "P05", f"{hook}() {wanted}, got {got}", _report(candidate))
    return [item for result in results for item in result]


def _report(candidate: Candidate) -> str:
    return f"Report it to the authors of {candidate.distribution}; it may be made for another version of fvd-core."


def caller_of_one(manager: HookManager, module: ModuleType, hook: str) -> pluggy.HookCaller:
    """The hook restricted to one plugin: its failure is its own, and its result has an owner."""
    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    return manager.subset_hook_caller(hook, others)
