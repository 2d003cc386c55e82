"""The processes of one run agree on what they run, before anything is built: plugins, versions, run file.

Every rank tells rank 0 its lock through a `torch.distributed.TCPStore`; rank 0 compares and tells everybody the verdict.
So all ranks stop with the same message, and nobody waits in a collective for one that runs something else.

Light until there is more than one rank.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from fvd.errors import FvdError, PluginError
from fvd.plugins.drift import digest, environment_facts, run_file_facts, table
from fvd.plugins.lock import Lock

if TYPE_CHECKING:
    from torch.distributed import Store

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(minutes=5)
"""How long ranks wait for each other: nodes of a cluster do not start at once."""
GRACE = timedelta(seconds=20)
"""How much longer the others wait for rank 0's verdict, and rank 0 for the others to have read it."""
POLL_SECONDS = 0.1
MAX_DIFFERENCES = 20


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run, as ``torchrun`` and its like describe it in the environment.

    has_store: whether the launcher keeps a store at ``address``; else rank 0 does. attempt: counted by launchers that
    start a run again.
    """

    rank: int
    size: int
    address: tuple[str, int]
    has_store: bool = False
    attempt: int = 0


def find_ranks(environment: Mapping[str, str]) -> Ranks | None:
    """None where this is the only process. Raises FvdError where the environment tells of several, and not how they
    find each other."""
    if environment.get("WORLD_SIZE", "1") == "1":
        return None
    missing = [name for name in VARIABLES if not environment.get(name)]
    wrong = [name for name in ("RANK", "WORLD_SIZE", "MASTER_PORT") if not environment.get(name, "0").isdigit()]
    if missing or wrong:
        listed = ", ".join([*(f"{name} is not set" for name in missing), *(f"{name} is no number" for name in wrong)])
        raise FvdError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, so this should be one of several processes, but {listed}",
            cure="Start it with torchrun, or unset WORLD_SIZE to run one process.",
        )
    return Ranks(
        rank=int(environment["RANK"]),
        size=int(environment["WORLD_SIZE"]),
        address=(environment["MASTER_ADDR"], int(environment["MASTER_PORT"])),
        has_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


@dataclass(frozen=True)
class Statement:
    """What one rank tells the others. problem: why it cannot run at all; then it has no facts."""

    host: str
    digest: str
    facts: Mapping[str, tuple[str, str]]
    """By what it is called in messages: what is compared, and what is shown."""
    problem: str = ""

    @classmethod
    def of(cls, lock: Lock) -> Statement:
        found = {**environment_facts(lock), **run_file_facts(lock)}
        return cls(socket.gethostname(), digest(lock), {name: (fact.identity, fact.text) for name, fact in found.items()})


def agree(ranks: Ranks, make_lock: Callable[[], Lock], *, timeout: timedelta = TIMEOUT) -> None:
    """Return when every rank has made the same lock.

    make_lock may raise FvdError: this rank ends with it, and the others are told. Raises PluginError (P12) on every rank
    where locks differ or a rank cannot make its own, and FvdError that names the ranks that did not come in time.
    """
    failure: FvdError | None = None
    try:
        statement = Statement.of(make_lock())
    except FvdError as error:
        failure = error
        statement = Statement(socket.gethostname(), "", {}, problem=str(error).splitlines()[0])
    try:
        verdict = _exchange(ranks, statement, timeout)
    except FvdError:
        if failure is not None:
            raise failure from None
        raise
    if failure is not None:
        raise failure
    if verdict:
        raise PluginError(verdict, cure="Install the same versions on every host, and give every process the same run file.")


# --- the exchange ----------------------------------------------------------------------------------------------------
def _exchange(ranks: Ranks, statement: Statement, timeout: timedelta) -> str:
    """What rank 0 says of everybody's statements: nothing, or what differs. Raises FvdError for ranks that are missing."""
    with _store(ranks, timeout) as store:
        store.set(_key("statement", ranks.rank), json.dumps(vars(statement)))
        if ranks.rank == 0:
            missing = _wait_for_all(store, "statement", ranks.size, timeout)
            statements = {} if missing else _read_statements(store, ranks.size)
            store.set("verdict", json.dumps({"missing": missing, "differences": describe_differences(statements)}))
            _wait_for_all(store, "read", ranks.size, GRACE, besides=(0, *missing))
        elif _missing(store, ["verdict"], timeout + GRACE):
            keys = [_key("statement", rank) for rank in range(ranks.size)]
            raise _not_there([rank for rank, key in enumerate(keys) if not store.check([key])], ranks, timeout)
        verdict = json.loads(store.get("verdict"))
        store.set(_key("read", ranks.rank), "")
    if verdict["missing"]:
        raise _not_there(verdict["missing"], ranks, timeout)
    differences: str = verdict["differences"]
    return differences


@contextlib.contextmanager
def _store(ranks: Ranks, timeout: timedelta) -> Iterator[Store]:
    from torch.distributed import DistError, PrefixStore, TCPStore

    host, port = ranks.address
    keeps_it = ranks.rank == 0 and not ranks.has_store
    if not keeps_it:
        _wait_for_listener(ranks, timeout)
    try:
        store = TCPStore(host, port, is_master=keeps_it, timeout=timeout, wait_for_workers=False, multi_tenant=True)
    except DistError as error:
        reason = str(error).splitlines()[0]
        raise FvdError(
            f"rank {ranks.rank} of {ranks.size} cannot {'listen' if keeps_it else 'connect'} at {host}:{port}: {reason}",
            cure="Choose another MASTER_PORT; something else may be using this one.",
        ) from None
    try:
        yield PrefixStore(f"fvd/agreement/{ranks.attempt}", store)
    except DistError as error:
        raise FvdError(
            f"rank {ranks.rank} of {ranks.size} lost the connection to {host}:{port}: {str(error).splitlines()[0]}",
            cure="Look at the output of rank 0: it has ended.",
        ) from None


def _wait_for_listener(ranks: Ranks, timeout: timedelta) -> None:
    """`TCPStore` would wait as well, but write a C++ stack to the terminal every other second."""
    end = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection(ranks.address, timeout=timeout.total_seconds()).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                who = "the launcher's store" if ranks.has_store else "rank 0"
                host, port = ranks.address
                raise FvdError(
                    f"rank {ranks.rank} of {ranks.size} on {socket.gethostname()} cannot reach {who} at {host}:{port}: "
                    f"{error.strerror or error} (waited {timeout.total_seconds():.0f} s)",
                    cure="Look at the output of rank 0; MASTER_ADDR and MASTER_PORT must lead to its host from every other.",
                ) from None
        time.sleep(POLL_SECONDS)


def _key(what: str, rank: int) -> str:
    return f"{what}/{rank}"


def _wait_for_all(store: Store, what: str, size: int, timeout: timedelta, besides: Sequence[int] = ()) -> list[int]:
    """The ranks whose key did not come in time."""
    ranks = [rank for rank in range(size) if rank not in besides]
    missing = _missing(store, [_key(what, rank) for rank in ranks], timeout)
    return [rank for rank in ranks if _key(what, rank) in missing]


def _missing(store: Store, keys: list[str], timeout: timedelta) -> list[str]:
    """The keys that are not there in time. Asks again and again: `Store.wait` writes to the terminal when time is up."""
    end = time.monotonic() + timeout.total_seconds()
    while not store.check(keys):
        if time.monotonic() > end:
            return [key for key in keys if not store.check([key])]
        time.sleep(POLL_SECONDS)
    return []


def _not_there(missing: Sequence[int], ranks: Ranks, timeout: timedelta) -> FvdError:
    who = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {_numbers(missing)}"
    return FvdError(
        f"{who} of {ranks.size} did not come within {timeout.total_seconds():.0f} s",
        cure="Look at the output of those processes; they may have ended with an error before, or were never started.",
    )


# --- the verdict -----------------------------------------------------------------------------------------------------
def _read_statements(store: Store, size: int) -> dict[int, Statement]:
    texts = store.multi_get([_key("statement", rank) for rank in range(size)])
    return {rank: Statement(**json.loads(text)) for rank, text in enumerate(texts)}


def describe_differences(statements: Mapping[int, Statement]) -> str:
    """A table of what differs, and on which ranks and hosts; empty where all agree. The same on every rank."""
    failed = {rank: one for rank, one in statements.items() if one.problem}
    if failed:
        problems = [(f"rank {rank} on {one.host}", one.problem) for rank, one in failed.items()]
        return f"{len(failed)} of {len(statements)} processes cannot run this file [P12]:\n{table(problems)}"
    groups: dict[str, list[int]] = {}
    for rank, one in statements.items():
        groups.setdefault(one.digest, []).append(rank)
    if len(groups) <= 1:
        return ""
    members = [(_who(ranks, statements), statements[ranks[0]].facts) for ranks in groups.values()]
    names = dict.fromkeys(name for _, found in members for name in found)
    differing = [name for name in names if len({found[name][0] if name in found else None for _, found in members}) > 1]
    rows = [
        (name if first else "", who, found[name][1] if name in found else "none")
        for name in differing[:MAX_DIFFERENCES]
        for first, (who, found) in zip([True] + [False] * len(members), members, strict=False)
    ]
    more = len(differing) - MAX_DIFFERENCES
    rest = f"\n    and {more} more" if more > 0 else ""
    return f"the {len(statements)} processes of this run do not run the same [P12]:\n{table(rows)}{rest}"


def _who(ranks: Sequence[int], statements: Mapping[int, Statement]) -> str:
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(statements[rank].host, []).append(rank)
    return ", ".join(f"rank {_numbers(found)} on {host}" for host, found in by_host.items())


def _numbers(ranks: Sequence[int]) -> str:
    """``0-3, 7``."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and spans[-1][-1] == rank - 1:
            spans[-1] = [spans[-1][0], rank]
        else:
            spans.append([rank])
    return ", ".join("-".join(map(str, span)) for span in spans)
