"""What a plugin file uses of its own folder: the files that a copy of it would need."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_TARGET = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_][\w.]*")
"""``my_losses:Loss``, as descriptors name what core imports later."""


def files_beside(file: Path) -> dict[str, Path]:
    """``file`` and, by path relative to its folder, every Python file of that folder that it imports or names as a target,
    and so on through those.

    Read from the source and not from ``sys.modules``, so that it does not depend on what has been imported when somebody
    asks. A file counts also where an installed module of its name would be imported in its place.
    """
    folder = file.parent
    found: dict[str, Path] = {}
    waiting = [file]
    while waiting:
        one = waiting.pop()
        name = one.relative_to(folder).as_posix()
        if name not in found:
            found[name] = one
            waiting += _used_by(one, folder)
    return found


def _used_by(file: Path, folder: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    package = file.parent.relative_to(folder).parts
    for node in ast.walk(tree):
        for module in _modules_in(node, package):
            yield from _files_of(module, folder)


def _modules_in(node: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every module that a node may import. package: the one that the node's file is in."""
    match node:
        case ast.Import(names=names):
            yield from (tuple(alias.name.split(".")) for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            above = package[: len(package) - level + 1] if level else ()
            base = (*above, *(module.split(".") if module else ()))
            yield base
            yield from ((*base, alias.name) for alias in names)  # a module of a package, perhaps
        case ast.Constant(value=str(text)) if target := _TARGET.fullmatch(text):
            yield tuple(target[1].split("."))


def _files_of(module: tuple[str, ...], folder: Path) -> Iterator[Path]:
    """The module's file and those of the packages around it, as far as they lie in ``folder``."""
    for length in range(1, len(module) + 1):
        place = folder.joinpath(*module[:length])
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                yield path
                break
