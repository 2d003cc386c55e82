"""`fvd plugins deps RUN.yaml`: what to install for a run file, for ``pip install -r``.

Requirements come from three places alone: what the file itself requires, the distributions that are installed, and core's
catalogue. One is never made up from the name that a file asks for: anybody could have taken that name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvd.errors import FvdError
from fvd.plugins.discovery import CORE_DISTRIBUTION, LOCAL, canonical

if TYPE_CHECKING:
    from fvd.cli.main import Arguments
    from fvd.plugins import Plugins

TAKES_A_RUN_FILE = "`fvd plugins deps` takes a run file; what a Python file imports, it cannot tell."

Name = tuple[str, str]
"""(kind, what the run file says)."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_file", type=Path, metavar="RUN.yaml", help="a run file; it need not pass `fvd check`")
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    found = find_requirements(_read(args.run_file), args.run_file.parent, args.load_all_plugins())
    for line in found.lines:
        print(line)
    for remark in [*found.problems, *found.remarks]:
        print(f"fvd: {remark}", file=sys.stderr)
    return 1 if found.problems else 0


def _read(path: Path) -> Mapping[str, Any]:
    """Raises FvdError for what is no run file: nothing would be printed for it, as for one that needs nothing."""
    from fvd.config.load import SECTIONS, read_run_text
    from fvd.config.yaml_lines import read_yaml

    document = read_yaml(read_run_text(path), str(path))
    if not document.readable:
        raise FvdError("\n".join(str(problem) for problem in document.problems), cure=TAKES_A_RUN_FILE)
    if not any(section in document.data for section in SECTIONS):
        what = "it has none of its sections" if document.data else "it is empty"
        raise FvdError(f"{path} is no run file: {what}", cure=TAKES_A_RUN_FILE)
    return document.data


@dataclass
class Requirements:
    """lines: sorted requirements. problems: what could not be resolved, remarks: what cannot be installed; one line each."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def find_requirements(document: Mapping[str, Any], folder: Path, plugins: Plugins) -> Requirements:
    """Requirements of every name in a run file. folder: where the run file lies."""
    found = Requirements()
    required = _required(document, found.problems)
    needed: set[str] = set()
    unknown: list[Name] = []
    for kind, name in _names(document, folder):
        distribution = _distribution_of(plugins, kind, name, required)
        if distribution is None:
            unknown.append((kind, name))
        else:
            needed.add(canonical(distribution))
            if distribution == LOCAL:
                found.remarks += _files_of(plugins, kind, name)
    # A name that nobody here knows may be of a distribution that the file itself requires.
    strangers = [name for name in required if name not in needed and not any(r.answers_to(name) for r in plugins.records)]
    if not strangers:
        found.problems += [_unknown(kind, name) for kind, name in unknown]
    found.lines = sorted({*chain.from_iterable(required.values()), *(needed - required.keys() - {CORE_DISTRIBUTION, LOCAL})})
    return found


def _required(document: Mapping[str, Any], problems: list[str]) -> dict[str, list[str]]:
    """``plugins.require``: canonical distribution -> its requirements as they are written."""
    from packaging.requirements import InvalidRequirement, Requirement

    found: dict[str, list[str]] = {}
    for text in _texts(_section(document, "plugins").get("require")):
        try:
            found.setdefault(canonical(Requirement(text).name), []).append(text)
        except InvalidRequirement:
            problems.append(f"plugins.require: {text!r} is not a requirement; write it like fvd-wan>=0.1,<0.2")
    return found


def _names(document: Mapping[str, Any], folder: Path) -> Iterator[Name]:
    """Every name of a component in the file, those of wrong types left aside: `fvd check` is for those."""
    recipe = _section(document, "recipe")
    training = _section(document, "training")
    roles = _section(document, "roles").values()
    found = [("family", recipe.get("family")), ("method", recipe.get("method"))]
    found += [("family", role.get("family")) for role in roles if isinstance(role, dict)]
    found += [("tracker", name) for name in _texts(training.get("trackers")) if name != "none"]
    found += [("validator", training.get("validator"))]
    # Older files say the sampler under `training`.
    samplers = (section.get("sampler_kind") for section in (_pipeline_config(document, folder), training))
    found += [("sampler", name) for name in samplers]
    yield from dict.fromkeys((kind, name) for kind, name in found if isinstance(name, str))


def _pipeline_config(document: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    from fvd.config.yaml_lines import read_yaml_file

    elsewhere = document.get("pipeline_config_path")
    if not isinstance(elsewhere, str):
        return _section(document, "pipeline_config")
    path = Path(elsewhere).expanduser()
    try:
        return read_yaml_file(path if path.is_absolute() or path.exists() else folder / path).data
    except (OSError, UnicodeDecodeError):
        return {}


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = document.get(name)
    return section if isinstance(section, dict) else {}


def _texts(value: object) -> list[str]:
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [item.strip() for item in items if isinstance(item, str) and item.strip()]


def _distribution_of(plugins: Plugins, kind: str, name: str, required: Collection[str]) -> str | None:
    """The distribution that provides ``name``: the catalogue's, else the installed one's; None where nobody knows."""
    from fvd.plugins.missing import catalogue

    qualifier, _, short = name.rpartition(":")
    listed = catalogue().get(kind, {}).get(short)
    owners = [plugins.owner(spec) for spec in plugins.specs(kind) if spec.name == short]
    if qualifier:
        candidates = [owner.distribution for owner in owners if owner.answers_to(qualifier)]
        candidates += [known for known in (*required, listed) if known and canonical(known) == canonical(qualifier)]
    else:
        candidates = [listed] if listed else [owner.distribution for owner in owners]
    return candidates[0] if len(set(candidates)) == 1 else None


def _files_of(plugins: Plugins, kind: str, name: str) -> Iterator[str]:
    from fvd.plugins.missing import noun

    for spec in plugins.meant_by(f"{kind}:{name}"):
        if file := plugins.owner(spec).file:
            yield f"{noun(kind)} {name!r} comes from a file, which is needed itself: --plugin {file}"


def _unknown(kind: str, name: str) -> str:
    from fvd.plugins.missing import noun

    return (
        f"nobody here knows which distribution provides the {noun(kind)} {name!r}; name it in the run file, as in "
        "plugins: {require: [DISTRIBUTION]}"
    )
