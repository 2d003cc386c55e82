"""Installed distributions that are only a few files in a folder: for tests of plugin discovery."""

from __future__ import annotations

import importlib
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fvd.plugins.discovery import GROUP, ON_REQUEST_GROUP


def fake_dist(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    entry_points: Mapping[str, str] | None = None,
    modules: Mapping[str, str] | None = None,
    requires: Iterable[str] = (),
    on_request: Mapping[str, str] | None = None,
    summary: str = "A plugin of a test",
    direct_url: Mapping[str, object] | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write ``NAME-VERSION.dist-info`` and modules into ``folder``; return ``folder``, to use with `installed_in`.

    entry_points: plugin name -> module, in the group ``fvd.plugins``; on_request: in ``fvd.plugins.on_request``. modules:
    dotted name -> source (indentation is removed); packages around a module are made, empty, where ``modules`` does not
    give them. requires: lines of Requires-Dist. direct_url: what PEP 610 records of an installation that is not from an
    index, ``{"url": "file:///…", "dir_info": {"editable": True}}``. files: further texts by their path below ``folder``, say
    the RECORD. Calling it again for the same name and version replaces the metadata.

        fake_dist(tmp_path, "fvd-x", entry_points={"x": "fvd_x.plugin"}, modules={"fvd_x.plugin": source})
        with installed_in(tmp_path):
            plugins = load_plugins()
    """
    metadata = folder / f"{re.sub(r'[-_.]+', '_', name)}-{version}.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    about = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", f"Summary: {summary}"]
    _write(metadata / "METADATA", "\n".join([*about, *(f"Requires-Dist: {line}" for line in requires)]) + "\n")
    groups = {GROUP: entry_points or {}, ON_REQUEST_GROUP: on_request or {}}
    lines = [line for group, plugins in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in plugins.items()))]
    _write(metadata / "entry_points.txt", "\n".join(lines) + "\n")
    if direct_url is not None:
        _write(metadata / "direct_url.json", json.dumps(direct_url))
    for module, source in (modules or {}).items():
        _write_module(folder, module, source, modules or {})
    for path, text in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        _write(folder / path, text)
    importlib.invalidate_caches()
    return folder


def _write_module(folder: Path, module: str, source: str, modules: Mapping[str, str]) -> None:
    *packages, last = module.split(".")
    place = folder
    for package in packages:
        place = place / package
        place.mkdir(exist_ok=True)
        if not (place / "__init__.py").exists():
            _write(place / "__init__.py", "")
    is_package = any(other.startswith(module + ".") for other in modules)
    if is_package:
        (place / last).mkdir(exist_ok=True)
    _write(place / last / "__init__.py" if is_package else place / f"{last}.py", textwrap.dedent(source))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@contextmanager
def installed_in(folder: Path) -> Iterator[Path]:
    """Put ``folder`` on ``sys.path``; at the end take it off and forget the modules that came from it."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            origin = vars(module).get("__file__") if isinstance(module, ModuleType) else None
            if isinstance(origin, str) and folder in Path(origin).parents:
                del sys.modules[name]
