"""What an installed distribution declares that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING

from fvd.plugins.discovery import canonical

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def requirement_names(name: str) -> set[str]:
    """Canonical names of what a distribution always requires, and of what the extras in those requirements bring."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(name, "")]  # an empty extra stands for what is always required
    while waiting:
        one, extra = waiting.pop()
        if (one, extra) not in seen:
            seen.add((one, extra))
            for requirement in _required_by(one, extra):
                found.add(canonical(requirement.name))
                waiting += [(canonical(requirement.name), wanted) for wanted in requirement.extras]
    return found


def _required_by(name: str, extra: str) -> Iterator[Requirement]:
    from packaging.requirements import Requirement

    try:
        lines = distribution(name).requires or []
    except PackageNotFoundError:
        return
    for line in lines:
        try:
            requirement = Requirement(line)
            applies = requirement.marker.evaluate({"extra": extra}) if requirement.marker else not extra
        except ValueError:  # some markers can be read and not be evaluated: `python_version ~= "x"`
            continue
        if applies:
            yield requirement
