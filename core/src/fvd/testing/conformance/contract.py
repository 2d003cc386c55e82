"""C01 to C05: what the descriptors promise, seen on the loaded classes."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fvd.adapters import Adapter
from fvd.data.spec import DataSpec
from fvd.families import Family
from fvd.methods import Method
from fvd.plugins.faults import describe
from fvd.plugins.targets import import_target
from fvd.specs import PRIMITIVES, FamilySpec, MethodSpec
from fvd.testing.conformance.asserts import listed, require
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.outcomes import CheckFailure
from fvd.trackers.base import Tracker
from fvd.validation.base import Validator

CLASSES: dict[str, type] = {"family": Family, "method": Method, "validator": Validator}
"""Kinds whose target is a class."""


# --- C01 ---
def loads(subject: Subject) -> None:
    target = subject.plugins.load(subject.kind, subject.name)
    wanted = CLASSES.get(subject.kind)
    if wanted:
        require(
            isinstance(target, type) and issubclass(target, wanted),
            f"{subject.spec.target} must be a subclass of fvd.{wanted.__name__}, it is {_kind_of(target)}",
        )
        missing = sorted(target.__abstractmethods__)
        require(not missing, f"{subject.spec.target} lacks {', '.join(missing)}")
    elif subject.kind == "tracker":
        require(
            not isinstance(target, type) or issubclass(target, Tracker), f"{subject.spec.target} must be or build a fvd.Tracker"
        )
    else:
        require(not isinstance(target, type), f"{subject.spec.target} must be a function, it is {_kind_of(target)}")
    if isinstance(subject.spec, (FamilySpec, MethodSpec)):
        subject.plugins.load_config(subject.kind, subject.name)
    if isinstance(subject.spec, FamilySpec) and subject.spec.tiny:
        tiny = import_target(subject.record, f"the tiny model of {subject.label}", subject.spec.tiny)
        require(callable(tiny), f"tiny = {subject.spec.tiny} must be a function, it is {_kind_of(tiny)}")
    if isinstance(subject.spec, MethodSpec):
        names, roles = sorted(target.role_names), sorted(subject.spec.required_roles)
        require(names == roles, f"its role_names are {names}, and its descriptor's roles {roles}")
        names, roles = sorted(target.optional_role_names), sorted(set(subject.spec.roles) - set(roles))
        require(names == roles, f"its optional_role_names are {names}, and its descriptor's optional roles {roles}")


def _kind_of(target: object) -> str:
    return f"the class {target.__name__}" if isinstance(target, type) else f"a {type(target).__name__}"


# --- C02 ---
def primitives(subject: Subject) -> None:
    spec, adapter = subject.spec, subject.family.adapter
    assert isinstance(spec, FamilySpec)
    implemented = implemented_primitives(adapter)
    declared = frozenset(spec.provides)
    problems = []
    if declared - implemented:
        problems.append(f"declares {listed(declared - implemented)}, and {_name(adapter)} does not implement it")
    if implemented - declared:
        problems.append(f"{_name(adapter)} implements {listed(implemented - declared)}, which `provides` does not declare")
    if frozenset(spec.attn_kinds) != adapter.attn_kinds:
        problems.append(f"declares attn_kinds {listed(spec.attn_kinds)}, and {_name(adapter)} has {listed(adapter.attn_kinds)}")
    require(not problems, "; ".join(problems))


def implemented_primitives(adapter: Adapter) -> frozenset[str]:
    """Those that are not `Adapter`'s own refusals."""
    found = {
        name for name in PRIMITIVES if name in vars(Adapter) and _method(type(adapter), name) is not _method(Adapter, name)
    }
    try:
        int(adapter.num_train_timesteps)
        found.add("num_train_timesteps")
    except AttributeError:
        pass
    return frozenset(found)


def _method(owner: type, name: str) -> object:
    return inspect.getattr_static(owner, name)


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__name__}"


# --- C03 ---
def _sampler(model: Any, latents: Any, *, scheduler: Any, timesteps: Any, generators: Any) -> Any: ...


def _tracker(context: Any) -> Any: ...


def _dataset_kind(sources: Any, spec: Any, *, needs_latents: Any) -> Any: ...


def _command(parser: Any) -> None: ...


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sampler": _sampler,
    "tracker": _tracker,
    "dataset_kind": _dataset_kind,
    "command": _command,
}
"""Kinds whose target is called as one of these."""

METHODS = {
    "family": (
        "__init__", "load_role", "build_adapter", "data_spec", "build_encoders", "latent_shape", "shard_units", "export",
    ),
    "method": (
        "build", "build_roles", "optimizer_specs", "single_train_step", "roles_to_update", "latents_source", "sampling_plan",
        "on_train_start", "on_step_end", "validation_request",
    ),
    "validator": ("__init__", "on_train_start", "log_validation"),
}  # fmt: skip
"""Kinds whose target is a class: what core calls on it, with the base class' arguments."""


def signatures(subject: Subject) -> None:
    target = subject.plugins.load(subject.kind, subject.name)
    problems = []
    if subject.kind in METHODS:
        base = CLASSES[subject.kind]
        for name in METHODS[subject.kind]:
            problems += signature_problems(_method(target, name), _method(base, name), f"{target.__name__}.{name}")
    else:
        problems += signature_problems(target, FUNCTIONS[subject.kind], subject.spec.target.rpartition(":")[2])
    if isinstance(subject.spec, FamilySpec) and _is_built(subject):
        adapter = type(subject.family.adapter)
        for name in sorted(set(subject.spec.provides) & vars(Adapter).keys()):
            problems += signature_problems(_method(adapter, name), _method(Adapter, name), f"{adapter.__name__}.{name}")
    require(not problems, "; ".join(problems))


def _is_built(subject: Subject) -> bool:
    """A family whose adapter cannot be built fails B101; what there is of it is looked at all the same."""
    try:
        return bool(subject.family)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return False


def signature_problems(function: Any, wanted: Any, name: str) -> list[str]:
    """What keeps a caller of ``wanted`` from calling ``function``: arguments by position in that order, or by name."""
    if isinstance(wanted, classmethod) and not isinstance(function, (classmethod, staticmethod)):
        return [f"{name} must be a classmethod"]
    function, wanted = _plain(function), _plain(wanted)
    if not callable(function):
        return [f"{name} is not a function"]
    own, asked = dict(inspect.signature(function).parameters), dict(inspect.signature(wanted).parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
        return [f"{name} takes **arguments: name them"]
    problems = []
    if list(asked)[:1] in (["self"], ["cls"]):  # the first argument may have any name
        own, asked = dict(list(own.items())[1:]), dict(list(asked.items())[1:])
    for parameter in asked.values():
        mine = own.get(parameter.name)
        if mine is None:
            problems.append(f"{name} has no argument {parameter.name!r}")
        elif parameter.kind is not parameter.KEYWORD_ONLY and mine.kind is mine.KEYWORD_ONLY:
            problems.append(f"{name}: {parameter.name!r} must not be keyword-only")
        elif mine.kind is mine.POSITIONAL_ONLY:
            problems.append(f"{name}: {parameter.name!r} must not be positional-only")
        elif parameter.default is not parameter.empty and mine.default is mine.empty:
            problems.append(f"{name}: {parameter.name!r} needs a default")
    problems += [
        f"{name} requires {parameter.name!r}, which nobody gives"
        for parameter in own.values()
        if parameter.name not in asked
        and parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_POSITIONAL
    ]
    if not problems and _positional(own, asked) != _positional(asked, asked):
        problems.append(f"{name} must take its arguments in the order {', '.join(_positional(asked, asked))}")
    return problems


def _plain(function: Any) -> Any:
    return function.__func__ if isinstance(function, (classmethod, staticmethod)) else function


def _positional(parameters: Mapping[str, inspect.Parameter], asked: Mapping[str, inspect.Parameter]) -> list[str]:
    """The arguments that a caller may give by position."""
    return [name for name in parameters if name in asked and asked[name].kind is not inspect.Parameter.KEYWORD_ONLY]


# --- C04 ---
def example_config(subject: Subject) -> BaseModel:
    """The component's config with the values of its own example."""
    spec = subject.spec
    assert isinstance(spec, (FamilySpec, MethodSpec))
    model: type[BaseModel] = subject.plugins.load_config(subject.kind, subject.name)
    given = spec.example.pipeline_config if isinstance(spec, FamilySpec) else spec.example.method_config
    return model.model_validate(dict(given))


def config(subject: Subject) -> None:
    model = subject.plugins.load_config(subject.kind, subject.name)
    try:
        made = example_config(subject)
    except ValidationError as error:
        raise CheckFailure(f"its defaults and example do not parse: {_short(error)}") from error
    # As run.yaml in every run directory holds it.
    document = yaml.safe_load(yaml.safe_dump(made.model_dump(mode="json")))
    try:
        again = model.model_validate(document)
    except ValidationError as error:
        raise CheckFailure(f"what it writes it cannot read: {_short(error)}") from error
    changed = [name for name in model.model_fields if _dump(again)[name] != _dump(made)[name]]
    require(not changed and again == made, f"written and read again, {listed(changed) if changed else 'it'} has changed")
    try:
        model.model_validate({**document, "no_such_key_of_any_plugin": 1})
    except ValidationError:
        pass
    else:
        raise CheckFailure('it takes keys that it does not know: a misspelt one would be ignored (extra="forbid" is inherited)')
    silent = [name for name, field in model.model_fields.items() if not (field.description or "").strip()]
    require(not silent, f"no description of {listed(silent)}: write a docstring below each")


def _dump(model: BaseModel) -> dict[str, object]:
    return model.model_dump(mode="json")


def _short(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors(include_url=False))


# --- C05 ---
def pickles(subject: Subject) -> None:
    made = example_config(subject)
    require(_pickled(made, "its config") == made, "its config is another one after pickling")
    if isinstance(subject.spec, FamilySpec) and _is_built(subject):
        data_spec = subject.family.data_spec
        again = _pickled(data_spec, "its DataSpec")
        changed = [name for name in _DATA_SPEC if vars(again)[name] != vars(data_spec)[name]]
        require(not changed, f"the {listed(changed)} of its DataSpec are others after pickling")


_DATA_SPEC = [field.name for field in fields(DataSpec)]
"""A family may add fields of its own, of types that cannot be compared."""


def _pickled(thing: Any, what: str) -> Any:
    try:
        return pickle.loads(pickle.dumps(thing))
    except Exception as error:
        raise CheckFailure(f"{what} cannot be pickled: {describe(error)}") from error
