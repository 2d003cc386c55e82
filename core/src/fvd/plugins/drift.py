"""Two locks compared, fact by fact. Where a package lies does not count, what it contains does."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fvd.config.changes import MAY_CHANGE, flatten
from fvd.errors import PluginError
from fvd.plugins.lock import Lock, LockedPlugin, sha256_of


@dataclass(frozen=True)
class Fact:
    """identity: what two environments are compared by. text: what people are shown."""

    identity: str
    text: str = field(compare=False)


@dataclass(frozen=True)
class Difference:
    what: str
    was: str
    now: str


def environment_facts(lock: Lock) -> dict[str, Fact]:
    """What is installed, by what it is called in messages."""
    found = {"Python": Fact(lock.python, lock.python), "torch": Fact(lock.torch, lock.torch)}
    for entry in lock.plugins:
        found[f"plugin {entry.name} ({entry.distribution})"] = Fact(f"{entry.version} {entry.sha256}", str(entry))
    return found | {f"package {name}": Fact(version, version) for name, version in lock.packages.items()}


def run_file_facts(lock: Lock, *, but: Collection[str] = ()) -> dict[str, Fact]:
    """The run file's keys, dotted, but those in ``but``."""
    values = {key: value for key, value in flatten(lock.run_file).items() if key not in but}
    return {
        f"run file {key}": Fact(json.dumps(value, sort_keys=True), json.dumps(value, ensure_ascii=False))
        for key, value in values.items()
    }


def find_differences(before: Mapping[str, Fact], after: Mapping[str, Fact], *, absent: str) -> list[Difference]:
    """absent: what to show for a fact that one of them lacks."""
    names = [*before, *(name for name in after if name not in before)]
    return [
        Difference(name, before[name].text if name in before else absent, after[name].text if name in after else absent)
        for name in names
        if before.get(name) != after.get(name)
    ]


def digest(lock: Lock) -> str:
    """Equal where no fact differs."""
    found = environment_facts(lock) | run_file_facts(lock)
    return sha256_of({name: fact.identity for name, fact in found.items()})


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Aligned columns, indented, for messages."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["    " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


# --- refusing and warning --------------------------------------------------------------------------------------------
def refuse_drift(path: Path, locked: Lock, now: Lock) -> None:
    """Raise PluginError (P12) with a table of everything that is not as ``locked``, the lock at ``path``, says. Keys of
    the run file that change no number of training may differ."""
    found = changed_environment(locked, now)
    keys = (run_file_facts(locked, but=MAY_CHANGE), run_file_facts(now, but=MAY_CHANGE))
    found += find_differences(*keys, absent="not there")
    if found:
        rows = [("", "LOCKED", "NOW"), *((one.what, one.was, one.now) for one in found)]
        raise PluginError(f"this is not what {path} locks [P12]:\n{table(rows)}", cure=_cure(locked, now))


def _cure(locked: Lock, now: Lock) -> str:
    have = {(entry.distribution, entry.name): entry for entry in now.plugins}
    changed = [entry for entry in locked.plugins if not _same_code(entry, have.get((entry.distribution, entry.name)))]
    others = [name for name, version in locked.packages.items() if now.packages.get(name) != version]
    ways = dict.fromkeys([*map(_how_to_get, changed), *(_pin(name, locked.packages[name]) for name in others)])
    return "\n".join([*ways, "Bring back what the lock says, or leave out --locked: then the run may give other numbers."])


def _same_code(one: LockedPlugin, other: LockedPlugin | None) -> bool:
    return other is not None and (one.version, one.sha256) == (other.version, other.sha256)


def _how_to_get(entry: LockedPlugin) -> str:
    source = entry.source
    match source.kind:
        case "index":
            return _pin(entry.distribution, entry.version)
        case "vcs":
            return f"python -m pip install '{entry.distribution} @ git+{source.location}@{source.commit}'"
        case "editable" if source.commit and not source.dirty:
            return f"git -C {source.location} checkout {source.commit}"
    return f"{entry.distribution} came from {source}"


def _pin(distribution: str, version: str) -> str:
    return f"python -m pip install {distribution}=={version}"


def changed_environment(locked: Lock, now: Lock) -> list[Difference]:
    """What is installed otherwise; the run files are not compared."""
    return find_differences(environment_facts(locked), environment_facts(now), absent="not installed")
