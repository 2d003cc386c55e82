"""Plugins that cannot be left aside, told all at once: what a file given with ``--plugin`` or ``--strict-plugins`` asks for."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from types import TracebackType

from fvd.errors import PluginError
from fvd.plugins.faults import same_package
from fvd.plugins.findings import Finding
from fvd.plugins.records import LoadedPlugin


def refusal(plugins: Sequence[LoadedPlugin], findings: Sequence[Finding], *, with_traceback: bool) -> PluginError:
    """One error for all of ``plugins``, which are not ok, and for ``findings``. with_traceback: for their authors, through
    their own code."""
    lines = []
    for plugin in plugins:
        record = plugin.record
        lines.append(f"--plugin {record.file}: {record.reason} [{record.code}]" if record.file else record.verdict())
        lines += [f"    {line}" for line in _own_traceback(plugin)] if with_traceback else []
        lines.append(f"  {record.cure}")
    for finding in findings:
        about = f"{finding.plugin}: " if finding.plugin else ""
        lines += [f"{about}{finding.message} [{finding.code}]", f"  {finding.cure}"]
    return PluginError("\n".join(line for line in lines if line.strip()))


def _own_traceback(plugin: LoadedPlugin) -> list[str]:
    """The traceback of what its code raised, from where its code begins; nothing where it raised nothing."""
    error = plugin.failure.__cause__ if plugin.failure else None
    if error is None:
        return []
    step: TracebackType | None = error.__traceback__
    while step is not None and not same_package(str(step.tb_frame.f_globals.get("__name__", "")), plugin.record.module):
        step = step.tb_next
    return "".join(traceback.format_exception(type(error), error, step)).splitlines()
