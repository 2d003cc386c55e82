"""`fvd plugins doctor`: everything that `list` says, and everything that shows only when code is loaded."""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

import fvd
from fvd.cli.plugins.output import pages_line, print_json, record_as_dict, shared_findings
from fvd.errors import FvdError
from fvd.plugins.discovery import CORE_DISTRIBUTION, canonical
from fvd.plugins.findings import Finding, stale_finding
from fvd.plugins.registry import KINDS
from fvd.plugins.targets import import_target
from fvd.specs import FamilySpec, MethodSpec, Spec

if TYPE_CHECKING:
    from fvd.cli.main import Arguments
    from fvd.plugins import PluginRecord, Plugins

LIBRARIES = ("torch", "pluggy", "pydantic", "packaging", "diffusers", "transformers", "safetensors", "pyarrow", "av")
NOTHING = "nothing is wrong; whether a plugin does what it should is what `fvd plugins check NAME` tries"


@dataclass
class Diagnosis:
    """problems: what does not work. warnings: what may not work, or not for long."""

    environment: dict[str, object] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    loaded: int = 0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for tools")
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    # What code prints while it is loaded must not end up in the output.
    with contextlib.redirect_stdout(sys.stderr):
        diagnosis = examine(args.plugins)
    if args.json:
        print_json(_as_dict(args.plugins, diagnosis))
    else:
        for line in _lines(args.plugins, diagnosis):
            print(line)
    return 1 if diagnosis.problems else 0


def examine(plugins: Plugins) -> Diagnosis:
    found = Diagnosis()
    _examine_machine(found)
    components = [spec for kind in KINDS for spec in plugins.specs(kind)] if not found.problems else []  # all need torch
    for record in plugins.records:
        _examine_record(record, found)
    for spec in components:
        problems = list(_load_all(plugins, spec))
        found.problems += problems
        found.loaded += not problems
    found.warnings += shared_findings(plugins)
    _examine_installations(plugins, found)
    return found


# --- the machine -----------------------------------------------------------------------------------------------------
def _examine_machine(found: Diagnosis) -> None:
    found.environment = {
        "fvd_core": fvd.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "libraries": {name: known for name in LIBRARIES if (known := _version(name))},
        "cuda_devices": [],
    }
    try:
        import torch

        found.environment["cuda_devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except Exception as error:  # a broken torch raises whatever its libraries raise
        message = f"torch cannot be used: {type(error).__name__}: {' '.join(str(error).split())}"
        cure = f"{sys.executable} -m pip install --force-reinstall torch"
        found.problems.append(Finding(code="W04", message=message, cure=cure))


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _examine_installations(plugins: Plugins, found: Diagnosis) -> None:
    """Also of distributions that have no plugin, yet: an entry point that was added after `pip install -e` is such a case."""
    from fvd.plugins.installed import (
        damaged_entry_points,
        editable_distributions,
        shadowed_distributions,
        stale_entry_points,
    )

    known = {record.distribution for record in plugins.records}  # `shared_findings` speaks of these
    damaged = [it for it in damaged_entry_points() if it.distribution not in known]  # one that has plugins is a record, P01
    found.warnings += [Finding(code="P01", message=it.reason, cure=it.cure) for it in damaged]
    stale = [stale_entry_points(it) for it in editable_distributions() if it.name not in known]
    found.warnings += [stale_finding(it) for it in stale if it]
    # Virtual environments on top of others hide much; what matters here is what fvd uses.
    relevant = {canonical(name) for name in (CORE_DISTRIBUTION, *LIBRARIES, *known)}
    shadowed = [it for it in shadowed_distributions() if canonical(it.distribution) in relevant]
    found.warnings += [Finding(code=it.code, message=it.reason, cure=it.cure) for it in shadowed]


# --- plugins ---------------------------------------------------------------------------------------------------------
def _examine_record(record: PluginRecord, found: Diagnosis) -> None:
    if record.state == "disabled":
        return
    if record.code:
        finding = Finding(code=record.code, plugin=str(record), message=record.reason, cure=record.cure)
        (found.warnings if record.usable else found.problems).append(finding)
    if record.distribution != CORE_DISTRIBUTION:
        found.warnings += _core_requirement(record)


def _core_requirement(record: PluginRecord) -> Iterator[Finding]:
    """A plugin that says nothing of later cores is loaded by one that it was never tried with."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        lines = requires(record.distribution) or []
        found = [it for it in map(Requirement, lines) if canonical(it.name) == CORE_DISTRIBUTION and it.marker is None]
    except (PackageNotFoundError, ValueError, InvalidRequirement):  # no metadata to read: it is another finding's
        return
    major = int(fvd.__version__.partition(".")[0])
    cure = f"Its authors should declare {CORE_DISTRIBUTION}>={'.'.join(fvd.__version__.split('.')[:2])},<{major + 1}."
    if not found:
        message = f"its distribution does not require {CORE_DISTRIBUTION}"
        yield Finding(code="W05", plugin=str(record), message=message, cure=cure)
    elif not any(part.operator in ("<", "<=", "==", "~=") for it in found for part in it.specifier):
        message = f"its requirement `{found[0]}` has no upper bound"
        yield Finding(code="W05", plugin=str(record), message=message, cure=cure)


def _load_all(plugins: Plugins, spec: Spec) -> Iterator[Finding]:
    """Import all that a descriptor names: target, config model, what makes a tiny model. P09 for what cannot be."""
    owner, name = plugins.owner(spec), plugins.name_of(spec)
    loaders: list[Callable[[], object]] = [partial(plugins.load, spec.kind, name)]
    if isinstance(spec, (FamilySpec, MethodSpec)):
        loaders.append(partial(plugins.load_config, spec.kind, name))
    if isinstance(spec, FamilySpec) and spec.tiny:
        loaders.append(partial(import_target, owner, f"the tiny model of family {spec.name!r}", spec.tiny))
    for load in loaders:
        try:
            load()
        except FvdError as error:
            yield Finding(code="P09", plugin=str(owner), message=error.message.removesuffix(" [P09]"), cure=error.cure)


# --- output ----------------------------------------------------------------------------------------------------------
def _as_dict(plugins: Plugins, diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "ok": not diagnosis.problems,
        "environment": diagnosis.environment,
        "plugins": [record_as_dict(record) for record in plugins.records],
        "problems": [finding.as_dict() for finding in diagnosis.problems],
        "warnings": [finding.as_dict() for finding in diagnosis.warnings],
    }


def _lines(plugins: Plugins, diagnosis: Diagnosis) -> Iterator[str]:
    about = diagnosis.environment
    libraries, devices = about["libraries"], about["cuda_devices"]
    assert isinstance(libraries, dict)
    assert isinstance(devices, list)
    yield f"fvd-core {about['fvd_core']}  ·  Python {about['python']} ({about['executable']})  ·  {about['platform']}"
    yield f"  {'  '.join(f'{name} {known}' for name, known in libraries.items())}"
    yield f"  CUDA devices: {', '.join(devices) or 'none'}"
    for record in plugins.records:
        if record.state == "disabled":
            yield f"  {record.name} is off: {record.reason} ({record.code})"
    for finding in diagnosis.problems:
        yield from finding.lines("✗")
    for finding in diagnosis.warnings:
        yield from finding.lines("!")
    usable = sum(record.usable for record in plugins.records)
    yield f"{usable} of {len(plugins.records)} plugins usable, {diagnosis.loaded} components loaded"
    yield from pages_line(finding.code for finding in [*diagnosis.problems, *diagnosis.warnings])
    counts = [(len(diagnosis.problems), "problem"), (len(diagnosis.warnings), "warning")]
    yield ", ".join(f"{count} {noun}{'s' * (count > 1)}" for count, noun in counts if count) or NOTHING
