"""A plugin that is one file, ``--plugin FILE``: the same hooks, no packaging."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path

from fvd.errors import PluginError
from fvd.plugins.discovery import LOCAL, Candidate, Unusable


def local_candidates(files: Iterable[str]) -> list[Candidate]:
    """One for each file; the same file twice counts once. Raises PluginError for all that are no Python file, at once."""
    paths = {Path(file).expanduser().absolute().resolve(): file for file in files}
    problems = [f"--plugin {given}: {problem} [P01]" for path, given in paths.items() if (problem := _problem(path))]
    if problems:
        raise PluginError("\n".join(problems), cure="Name a Python file that implements hooks, like my_method.py.")
    return [Candidate(name=path.stem, module=path.stem, distribution=LOCAL, version="-", file=str(path)) for path in paths]


def _problem(path: Path) -> str:
    if not path.exists():
        return "there is no such file"
    if path.suffix != ".py" or not path.is_file():
        return "is not a .py file"
    if not path.stem.isidentifier():
        return f"{path.stem!r} is not a name that can be imported; letters, digits and _ are"
    return ""


def make_importable(candidate: Candidate) -> None:
    """Put the file's folder at the end of ``sys.path``, so that targets like ``my_method:MyMethod`` are found, also in
    processes that a data loader starts. Raises Unusable (P06) where another module has the name."""
    folder = str(Path(candidate.file).parent)
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
        importlib.invalidate_caches()
    found = _find(candidate.module)
    if found is None or found.origin is None or not Path(found.origin).exists() or not _same(found.origin, candidate.file):
        if added:
            sys.path.remove(folder)
        taken = found.origin if found and found.origin else "another module"
        raise Unusable(
            "conflict",
            "P06",
            f"the name {candidate.module!r} is that of a module that is there already ({taken})",
            "Rename the file.",
        )


def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other)


def _find(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ValueError:  # a module without a spec, such as __main__
        return None
