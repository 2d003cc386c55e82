"""S01 to S05: what can be seen without running more of a plugin than its light module. Imports no torch."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

from fvd.errors import did_you_mean
from fvd.plugins.discovery import CORE_DISTRIBUTION, canonical
from fvd.specs import FamilySpec, MethodSpec, SamplerSpec, Spec
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.outcomes import CheckFailure, CheckSkipped
from fvd.testing.conformance.table import CHECKS, PLUGIN
from fvd.testing.light import assert_light_module, loaded_modules

HEAVY = frozenset({"torch", "numpy", "diffusers", "transformers", "jax", "tensorflow"})
"""What a config module must not load; a light module loads even less."""


def metadata(subject: Subject) -> None:
    """S01."""
    _require_installed(subject)
    record = subject.record
    if record.code == "P01":
        raise CheckFailure(record.reason)
    metadata = distribution(record.distribution).metadata
    lacking = [key for key in ("Name", "Version", "Summary") if not (metadata.get_all(key) or [""])[0].strip()]
    if lacking:
        keys = {"Name": "name", "Version": "version", "Summary": "description"}
        raise CheckFailure(f"the metadata of {record.distribution} lack [project] {', '.join(keys[key] for key in lacking)}")
    if _is_package(record.module):
        raise CheckFailure(
            f"the entry point `{record.name} = {record.module}` names a package; name its light module, {record.module}.plugin"
        )


def core_range(subject: Subject) -> None:
    """S02."""
    _require_installed(subject)
    if canonical(subject.record.distribution) == CORE_DISTRIBUTION:
        raise CheckSkipped("it comes with fvd-core itself")
    from packaging.requirements import InvalidRequirement, Requirement

    operators: set[str] = set()
    named = False
    for line in distribution(subject.record.distribution).requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            raise CheckFailure(f"the requirement {line!r} cannot be read") from None
        if canonical(requirement.name) == CORE_DISTRIBUTION:
            named = True
            operators |= {specifier.operator for specifier in requirement.specifier}
    if not named:
        raise CheckFailure(f"{subject.record.distribution} does not require {CORE_DISTRIBUTION}: {_RANGE}")
    if not operators & {">=", ">", "==", "~=", "==="}:
        raise CheckFailure(f"its requirement of {CORE_DISTRIBUTION} has no lower bound: {_RANGE}")
    if not operators & {"<", "<=", "==", "~=", "==="}:
        raise CheckFailure(f"its requirement of {CORE_DISTRIBUTION} has no upper bound: {_RANGE}")


_RANGE = "write dependencies = ['fvd-core>=X.Y,<X+1']"


def light_import(subject: Subject) -> None:
    """S03, in fresh interpreters: the light module loads next to nothing, config modules no torch."""
    _require_installed(subject)
    if subject.record.code in ("P01", "P02", "P06"):
        raise CheckSkipped(f"the plugin is {subject.record.state}: {subject.record.reason}")
    try:
        assert_light_module(subject.record.module)
        configs = sorted(
            {spec.config.partition(":")[0] for spec in subject.plugin_specs if isinstance(spec, (FamilySpec, MethodSpec))}
        )
        for module in configs:
            heavy = {name.partition(".")[0] for name in loaded_modules(f"import {module}")} & HEAVY
            if heavy:
                raise CheckFailure(
                    f"the config module {module} loads {', '.join(sorted(heavy))}: `fvd check` and "
                    "`fvd plugins show` import it, and must work without"
                )
    except AssertionError as error:
        raise CheckFailure(_last_line(str(error))) from None


def descriptors(subject: Subject) -> None:
    """S04."""
    record = subject.record
    if not record.usable:
        raise CheckFailure(f"the plugin is {record.state}: {record.reason} [{record.code}]")
    specs = subject.plugin_specs
    problems = [f"{spec.kind} {spec.name}: {problem}" for spec in specs for problem in _descriptor_problems(subject, spec)]
    if not specs:
        return
    if problems:
        raise CheckFailure("; ".join(problems))


def _descriptor_problems(subject: Subject, spec: Spec) -> list[str]:
    problems = []
    if not spec.summary.strip():
        problems.append("it has no summary")
    elif len(spec.summary) > 120:
        problems.append("its summary must have at most 120 characters")
    mine = {check.id for check in CHECKS if check.kinds & {spec.kind, PLUGIN}}
    problems += [
        f"expected_failures names {check!r}, which is no check of a {spec.kind}{did_you_mean(check, mine)}"
        for check in spec.expected_failures
        if check not in mine
    ]
    if isinstance(spec, FamilySpec):
        plugins = subject.plugins
        for kind, name, meant in (
            ("validator", spec.validator, plugins.validator_of(spec)),
            ("dataset_kind", spec.dataset_kind, plugins.dataset_kind_of(spec)),
        ):
            known = plugins.names(kind)
            if name not in known and meant == name:
                problems.append(f"no installed plugin has the {kind} {name!r} that it names{did_you_mean(name, known)}")
        asked_for = {sampler.scheduler for sampler in subject.plugins.specs("sampler") if isinstance(sampler, SamplerSpec)}
        problems += [
            f"no installed sampler asks for a scheduler of kind {kind!r}{did_you_mean(kind, asked_for)}"
            for kind in sorted(set(spec.samplers) - asked_for)
        ]
        if not spec.tiny and not spec.example.path:
            problems.append("it says neither `tiny` nor `example.path`: nobody can try it without a model of their own")
    return problems


def example(subject: Subject) -> str | None:
    """S05: with the toy counterpart, the file that `fvd plugins example` writes has no errors."""
    from fvd.config.example import example_run_file
    from fvd.config.load import load_run_file
    from fvd.testing.conformance.counterparts import TOY_METHOD, fitting_toys

    pairs = (
        [(subject.name, TOY_METHOD)]
        if isinstance(subject.spec, FamilySpec)
        else [(family, subject.name) for family in fitting_toys(subject)]
    )
    for family, method in pairs:
        path = subject.make_folder("example") / "run.yaml"
        path.write_text(example_run_file(subject.plugins, family, method), encoding="utf-8")
        loaded = load_run_file(path, plugins=subject.plugins)
        if loaded.errors:
            errors = "; ".join(f"{problem.key}: {problem.message}" for problem in loaded.errors)
            raise CheckFailure(f"the example for {family} and {method}: {errors}")
    return None


def _require_installed(subject: Subject) -> None:
    """Raise CheckSkipped for a plugin without a distribution: one local file."""
    try:
        distribution(subject.record.distribution)
    except (PackageNotFoundError, ValueError):
        raise CheckSkipped("it is not installed as a distribution") from None


def _is_package(module: str) -> bool:
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return False
    return found is not None and found.submodule_search_locations is not None


def _last_line(text: str) -> str:
    """Of an interpreter's complaint, what it comes down to."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{re.split(r' failed:', lines[0])[0]}: {lines[-1]}"
