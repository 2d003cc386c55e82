"""Which plugins a run has used, and exactly which versions: a part of ``run.lock.json``."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

import fvd
from fvd.plugins.registry import PluginRecord, Plugins
from fvd.specs import Spec


def plugin_lock(plugins: Plugins, used: Iterable[Spec]) -> dict[str, object]:
    """JSON-ready, and equal for equal environments, so that ranks can compare it.

    ``{"fvd_core": version, "python": version, "plugins": [{name, distribution, version, components, editable,
    direct_url}]}``: only the plugins that own a descriptor in ``used``, in the order of `Plugins.records`.
    ``direct_url`` is PEP 610's record (a commit, a local folder), null for a distribution from an index.
    """
    components: dict[PluginRecord, set[str]] = {}
    for spec in used:
        components.setdefault(plugins.owner(spec), set()).add(f"{spec.kind}:{spec.name}")
    return {
        "fvd_core": fvd.__version__,
        "python": platform.python_version(),
        "plugins": [_entry(record, components[record]) for record in plugins.records if record in components],
    }


def _entry(record: PluginRecord, components: set[str]) -> dict[str, object]:
    direct_url = _direct_url(record.distribution)
    return {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "components": sorted(components),
        "editable": _is_editable(direct_url),
        "direct_url": direct_url,
    }


def _direct_url(name: str) -> dict[str, object] | None:
    try:
        text = distribution(name).read_text("direct_url.json")
        found = json.loads(text) if text else None
    except (PackageNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_editable(direct_url: dict[str, object] | None) -> bool:
    folder = direct_url.get("dir_info") if direct_url else None
    return isinstance(folder, dict) and folder.get("editable") is True
