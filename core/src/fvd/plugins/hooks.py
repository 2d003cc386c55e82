"""The hooks of one plugin: what it implements, checked as it is registered.

Traps that pluggy leaves open are closed here: a misspelt hook name, keyword-only arguments, a forgotten marker and a
hook that returns nothing would all register silently, and the author would see "nothing happens".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

import pluggy

from fvd import hookspecs
from fvd.errors import did_you_mean
from fvd.plugins.discovery import Unusable, ask_the_authors
from fvd.plugins.faults import describe, import_failure, place_in
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

HOOK_NAMES = frozenset(name for name in vars(hookspecs) if name.startswith("fvd_"))


class PluginHooks(pluggy.PluginManager):
    """A pluggy manager for one plugin: its failure is its own, its results have an owner, and wrappers keep working.

    It looks only at what the module itself defines, so that registering never sets off a lazy module attribute (pluggy
    1.6 evaluates all of them), and knows only the hooks that are implemented, so that thirty plugins cost little.
    """

    def __init__(self, module: ModuleType, distribution: str) -> None:
        """Check and register. Raises Unusable (P04)."""
        super().__init__(hookspecs.PROJECT)
        self.implemented = self._find_implemented(module)
        problems = [problem for name, value in sorted(vars(module).items()) for problem in self._problems(module, name, value)]
        if problems:
            raise Unusable("broken", "P04", "; ".join(problems), ask_the_authors(distribution))
        if not self.implemented:
            return
        try:
            self.add_hookspecs(hookspecs)
            self.register(module)
        except Exception as error:  # pluggy's own validation; what it raises differs between versions
            reason = f"its hooks cannot be registered: {describe(error)}"
            raise Unusable("broken", "P04", reason, ask_the_authors(distribution)) from error

    def _find_implemented(self, module: ModuleType) -> dict[str, str]:
        """Function -> hook."""
        options = {name: self.parse_hookimpl_opts(module, name) for name in vars(module)}
        return {name: found.get("specname") or name for name, found in options.items() if found is not None}

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name in vars(plugin) else None

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        return super().parse_hookspec_opts(module_or_class, name) if name in self.implemented.values() else None

    def _problems(self, module: ModuleType, name: str, value: object) -> list[str]:
        hook = self.implemented.get(name)
        if hook is None:
            forgotten = name in HOOK_NAMES and inspect.isfunction(value) and value.__module__ == module.__name__
            return [f"{name}() is not marked with @fvd.hookimpl"] if forgotten else []
        if hook not in HOOK_NAMES:
            return [f"unknown hook {hook!r}{did_you_mean(hook, HOOK_NAMES)}"]
        return _signature_problems(hook, value) if callable(value) else [f"hook {hook!r} is not a function"]

    def caller(self, hook: str) -> pluggy.HookCaller | None:
        """What calls this plugin's implementations of ``hook``; None where it has none."""
        if hook not in self.implemented.values():
            return None
        caller: pluggy.HookCaller = vars(self.hook)[hook]
        return caller


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


def call_descriptor_hook(hooks: PluginHooks, hook: str, module: ModuleType, distribution: str) -> list[Spec]:
    """The descriptors that one hook returns. Raises Unusable (P05 for what it returns, P03 for what it imports)."""
    caller = hooks.caller(hook)
    implementations = [one for one in caller.get_hookimpls() if not (one.wrapper or one.hookwrapper)] if caller else []
    if caller is None or not implementations:
        return []
    try:
        results = caller()
        problem = _result_problem(results, len(implementations), HOOK_RETURNS[hook])
        items = [] if problem else [item for result in results for item in result]
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError):
            raise import_failure(distribution, module.__name__, error) from error
        reason = f"{hook}(): {describe(error)}{place_in(module.__name__, error)}"
        raise Unusable("broken", "P05", reason, ask_the_authors(distribution)) from error
    if problem:
        raise Unusable("broken", "P05", f"{hook}() {problem}", ask_the_authors(distribution))
    return items


def _result_problem(results: list[Any], expected: int, spec_class: type[Spec]) -> str:
    wanted = f"must return a list of {spec_class.__name__}"
    if len(results) != expected:  # pluggy drops None
        return f"{wanted}, got None"
    for result in results:
        if not isinstance(result, Sequence) or isinstance(result, str):
            return f"{wanted}, got {type(result).__name__}"
        for item in result:
            # A subclass may do anything when it is read, and one without its fields fails wherever they are.
            if type(item) is not spec_class:
                return f"{wanted}, got {type(item).__name__} in the list"
            missing = [it.name for it in fields(spec_class) if it.name not in vars(item)]
            if missing:
                return f"{wanted}, got one that was never made: it has no {', '.join(missing)}"
    return ""
