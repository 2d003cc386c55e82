"""Installed distributions that are only a few files in a folder: for tests of plugin discovery."""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fvd.plugins.discovery import GROUP


def fake_distribution(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    entry_points: Mapping[str, str] | None = None,
    modules: Mapping[str, str] | None = None,
    requires: Iterable[str] = (),
) -> Path:
    """Write ``NAME-VERSION.dist-info`` and modules into ``folder``; return ``folder``, to use with `installed_in`.

    entry_points: plugin name -> module, in the group ``fvd.plugins``. modules: dotted name -> source (indentation is
    removed); packages around a module are made, empty, where ``modules`` does not give them. requires: lines of
    Requires-Dist. Calling it again for the same name and version replaces the metadata.

        fake_distribution(tmp_path, "fvd-x", entry_points={"x": "fvd_x.plugin"}, modules={"fvd_x.plugin": source})
        with installed_in(tmp_path):
            plugins = load_plugins()
    """
    metadata = folder / f"{re.sub(r'[-_.]+', '_', name)}-{version}.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
    _write(metadata / "METADATA", "\n".join(lines) + "\n")
    declared = [f"{plugin} = {module}" for plugin, module in (entry_points or {}).items()]
    _write(metadata / "entry_points.txt", "\n".join([f"[{GROUP}]", *declared]) + "\n")
    for module, source in (modules or {}).items():
        _write_module(folder, module, source, modules or {})
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
