"""`run`: every check of a plugin or of one component, as a report."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from fvd.errors import FvdError, PluginError, did_you_mean
from fvd.plugins import PluginOptions, PluginRecord, Plugins
from fvd.plugins.discovery import CORE_DISTRIBUTION
from fvd.plugins.registry import KINDS, split_kind
from fvd.specs import Spec
from fvd.testing.conformance.counterparts import REQUESTS
from fvd.testing.conformance.examination import Examination
from fvd.testing.conformance.outcomes import CheckResult, Report
from fvd.testing.conformance.table import CHECKS, checks_of

_NO_OPTIONS = PluginOptions()


def load_for_check(name: str = "", options: PluginOptions = _NO_OPTIONS) -> Plugins:
    """Installed plugins, with the toys that checks need, and the plugin ``name`` where it is loaded on request only."""
    return replace(options, request=(*options.request, *REQUESTS)).load(mentioned=[split_kind(name)[1]] if name else [])


def _say_nothing(result: CheckResult) -> None:
    pass


def run(
    plugins: Plugins,
    name: str,
    *,
    only: Collection[str] = (),
    on_result: Callable[[CheckResult], None] = _say_nothing,
) -> Report:
    """Check what ``name`` means: a plugin (all its components), or one component (``wan``, ``acme-wan:wan``,
    ``family:wan``), and then its plugin as a whole too.

    plugins: from `load_for_check`. only: ids of checks; those that they need are made too, and not reported. on_result is
    called with each result as soon as it is there. Never raises what a plugin raises. Raises FvdError for a name or an id
    that there is not, and where the toys are not loaded.
    """
    unknown = sorted(set(only) - {check.id for check in CHECKS})
    if unknown:
        ids = [check.id for check in CHECKS]
        raise FvdError(
            f"there is no check {unknown[0]!r}{did_you_mean(unknown[0], ids)}", cure=f"Checks: {', '.join(sorted(ids))}."
        )
    _require_toys(plugins)
    subjects = find_subjects(plugins, name)
    results = []
    for record, spec in subjects:
        for result in _examine(plugins, record, spec, only):
            on_result(result)
            results.append(result)
    record = subjects[0][0]
    return Report(plugin=record.name, distribution=record.distribution, version=record.version, results=tuple(results))


def _require_toys(plugins: Plugins) -> None:
    states = {request.rpartition(":")[2]: "not loaded" for request in REQUESTS}
    cures: set[str] = set()
    for record in plugins.records:
        if record.distribution == CORE_DISTRIBUTION and record.name in states:
            states[record.name] = "" if record.usable else f"{record.state}: {record.reason}"
            cures.add(record.cure)
    missing = [f"{name} ({state})" for name, state in states.items() if state]
    if missing:
        raise FvdError(
            f"checks are made with the plugins {' and '.join(states)} of {CORE_DISTRIBUTION}; missing: {', '.join(missing)}",
            cure=" ".join(sorted(filter(None, cures))) or "In Python, load plugins with load_for_check().",
        )


def find_subjects(plugins: Plugins, name: str) -> list[tuple[PluginRecord, Spec | None]]:
    """What ``name`` means: plugins, each followed by its components. Raises PluginError for a name that means nothing."""
    records = [record for record in plugins.records if record.answers_to(name)]
    if any(record.name == name for record in records):
        records = [record for record in records if record.name == name]  # `core` and not every plugin of fvd-core
        records = [record for record in records if record.of_core] or records  # who takes a name of core's is in conflict
    chosen = [spec for kind in KINDS for spec in plugins.specs(kind) if plugins.owner(spec) in records]
    if not records:
        chosen = plugins.meant_by(name)
        records = list(dict.fromkeys(plugins.owner(spec) for spec in chosen))
    if not records:
        known = [record.name for record in plugins.records] + [spec.name for kind in KINDS for spec in plugins.specs(kind)]
        raise PluginError(
            f"no plugin and no component is called {name!r}{did_you_mean(name, known)}", cure="`fvd plugins list` shows them."
        )
    return [
        pair for record in records for pair in [(record, None), *((record, s) for s in chosen if plugins.owner(s) is record)]
    ]


def _examine(plugins: Plugins, record: PluginRecord, spec: Spec | None, only: Collection[str]) -> Iterator[CheckResult]:
    with Examination(plugins, record, spec) as examination:
        for check in checks_of(examination.subject.kind):
            if only and check.id not in only:
                continue
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                result = examination.result(check)
            yield replace(result, output=output.getvalue())
