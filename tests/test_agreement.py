"""Ranks compare what they run: real processes that differ in what they have installed, and real `torchrun`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from fvd.agreement import Ranks, Statement, describe_differences, find_ranks
from fvd.errors import FvdError
from fvd.testing import fake_dist

PLUGIN = """
    import fvd

    @fvd.hookimpl
    def fvd_samplers():
        return [fvd.SamplerSpec(name="loop", target="acme_loop.loop:sample")]
"""

RANKS = """
import json, os, signal, sys, traceback
from datetime import timedelta
import torch.distributed
from fvd.agreement import agree, find_ranks
from fvd.errors import FvdError
from fvd.plugins import load_plugins
from fvd.plugins.lock import make_lock

def make():
    plugins = load_plugins()
    return make_lock(plugins, [plugins.spec("sampler", "loop")], {"training": {"seed": int(os.environ.get("SEED", "0"))}})

def run(rank):
    signal.alarm(60)
    os.dup2(os.open(rank["output"], os.O_CREAT | os.O_WRONLY), 1)
    os.dup2(1, 2)
    os.environ.update(rank["environment"])
    sys.path.insert(0, rank["folder"])
    try:
        agree(find_ranks(os.environ), make, timeout=timedelta(seconds=float(os.environ.get("TIMEOUT", "30"))))
        print("agreed", flush=True)
        return 0
    except FvdError as error:
        print(error, flush=True)
        return 1
    except BaseException:
        traceback.print_exc()
        return 2

for line in sys.stdin:
    processes = []
    for rank in json.loads(line):
        process = os.fork()
        if not process:
            os._exit(run(rank))
        processes.append(process)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]), flush=True)
"""
"""Importing torch takes most of the time, so one process does it, and each rank is a fork of that one."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def site(tmp_path: Path, version: str, source: str = "def sample(): pass\n") -> Path:
    """A folder with acme-loop in this version."""
    folder = tmp_path / f"site-{version}"
    folder.mkdir(exist_ok=True)
    modules = {"acme_loop.plugin": PLUGIN, "acme_loop.loop": source}
    return fake_dist(folder, "acme-loop", version, entry_points={"loop": "acme_loop.plugin"}, modules=modules)


class Talk(Protocol):
    def __call__(
        self, folders: list[Path | None], *, port: int | None = None, **environment: list[str]
    ) -> list[tuple[int, str]]: ...


@pytest.fixture(scope="module")
def processes() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", RANKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.communicate()


@pytest.fixture
def talk(processes, tmp_path) -> Talk:
    """(exit status, output) of one process a folder; none for a rank that has no folder. environment: a value a rank."""

    def talk(folders: list[Path | None], *, port: int | None = None, **environment: list[str]) -> list[tuple[int, str]]:
        shared = {"WORLD_SIZE": str(len(folders)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port())}
        ranks = [
            {
                "folder": str(folder),
                "output": str(tmp_path / f"output-{rank}"),
                "environment": {"RANK": str(rank), **shared, **{name: values[rank] for name, values in environment.items()}},
            }
            for rank, folder in enumerate(folders)
            if folder is not None
        ]
        print(json.dumps(ranks), file=processes.stdin, flush=True)
        statuses = json.loads(processes.stdout.readline())
        return [(status, Path(rank["output"]).read_text()) for status, rank in zip(statuses, ranks, strict=True)]

    return talk


# --- between processes -----------------------------------------------------------------------------------------------
def test_ranks_that_run_the_same_go_on(talk, tmp_path):
    one, other = site(tmp_path, "1.0"), tmp_path / "elsewhere"
    other.mkdir()
    modules = {"acme_loop.plugin": PLUGIN, "acme_loop.loop": "def sample(): pass\n"}
    fake_dist(other, "acme-loop", "1.0", entry_points={"loop": "acme_loop.plugin"}, modules=modules)
    # the same code in another place, and an unrelated plugin beside it
    fake_dist(other, "acme-more", entry_points={"more": "acme_more"}, modules={"acme_more": "import fvd"})
    assert talk([one, other]) == [(0, "agreed\n")] * 2


def test_every_rank_fails_with_the_same_difference(talk, tmp_path):
    results = talk([site(tmp_path, "1.0"), site(tmp_path, "2.0"), site(tmp_path, "1.0")], SEED=["0", "0", "7"])
    host = socket.gethostname()
    assert [status for status, _ in results] == [1, 1, 1]
    assert len({output for _, output in results}) == 1
    lines = results[0][1].splitlines()
    assert lines[0] == "the 3 processes of this run do not run the same [P12]:"
    cells = [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in lines[1:7]]
    assert [row[-2:][0] for row in cells] == [f"rank {rank} on {host}" for rank in (0, 1, 2)] * 2
    assert cells[0][0] == "plugin loop (acme-loop)"
    assert [row[-1].split()[0] for row in cells[:3]] == ["1.0", "2.0", "1.0"]
    assert cells[3][0] == "run file training.seed"
    assert [row[-1] for row in cells[3:]] == ["0", "0", "7"]
    assert not any("fvd-core" in line for line in lines)  # it is the same everywhere


def test_a_rank_that_cannot_run_at_all_is_named_to_the_others(talk, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (_, first), (status, second) = results = talk([site(tmp_path, "1.0"), empty])
    assert [status for status, _ in results] == [1, 1]
    assert status == 1
    assert first.startswith("1 of 2 processes cannot run this file [P12]:\n")
    assert f"rank 1 on {socket.gethostname()}   there is no sampler 'loop'" in first
    assert second.startswith("there is no sampler 'loop'")  # its own error in full, with the cure
    assert "Install the same versions" in first


@pytest.mark.parametrize("absent", [0, 1])
def test_a_rank_that_never_comes_is_named(talk, tmp_path, absent):
    folder, port = site(tmp_path, "1.0"), free_port()
    present = [rank for rank in range(3) if rank != absent]
    results = talk([folder if rank in present else None for rank in range(3)], port=port, TIMEOUT=["2"] * 3)
    assert [status for status, _ in results] == [1, 1]
    for rank, (_, output) in zip(present, results, strict=True):
        if absent == 0:  # it would have kept the store
            assert f"rank {rank} of 3 on {socket.gethostname()} cannot reach rank 0 at 127.0.0.1:{port}" in output
        else:
            assert output.startswith("rank 1 of 3 did not come within 2 s\n")
        assert "Traceback" not in output


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]


def test_torchrun(tmp_path, write_run_file):
    """The launcher keeps the store. Ranks agree, and are told that a run is one process; nothing is written."""
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", training={"max_train_steps": 1})
    port = ["--master-port", str(free_port())]
    fvd = [sys.executable, "-m", "fvd.cli.main", "run", str(run_file)]
    result = subprocess.run([*TORCHRUN, *port, *fvd], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "fvd: 2 processes were started, and a run is one process" in result.stderr
    assert not (tmp_path / "out").exists()

    seeds = ["sh", "-c", 'exec "$0" -m fvd.cli.main run "$1" --set training.seed=$RANK', sys.executable, str(run_file)]
    result = subprocess.run([*TORCHRUN, *port, *seeds], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "fvd: the 2 processes of this run do not run the same [P12]:" in result.stderr
    assert "run file training.seed   rank 0 on" in result.stderr


# --- the environment -------------------------------------------------------------------------------------------------
COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {**COMPLETE, "WORLD_SIZE": "1", "RANK": "0"}])
def test_one_process_needs_no_agreement(environment):
    assert find_ranks(environment) is None


def test_ranks_of_the_environment():
    assert find_ranks(COMPLETE) == Ranks(rank=1, size=2, address=("host", 29500))
    torchrun = {**COMPLETE, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "3"}
    assert find_ranks(torchrun) == Ranks(rank=1, size=2, address=("host", 29500), has_store=True, attempt=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RANK": None}, ["RANK is not set"]),
        ({"MASTER_ADDR": None, "MASTER_PORT": "x"}, ["MASTER_ADDR is not set", "MASTER_PORT is no number"]),
        ({"WORLD_SIZE": "two"}, ["WORLD_SIZE is no number"]),
    ],
)
def test_half_an_environment_is_an_error(change, words):
    environment = {name: value for name, value in {**COMPLETE, **change}.items() if value is not None}
    with pytest.raises(FvdError) as caught:
        find_ranks(environment)
    for word in words:
        assert word in str(caught.value)


# --- the verdict -----------------------------------------------------------------------------------------------------
def statement(host: str, seed: int) -> Statement:
    return Statement(host, digest=str(seed), facts={"run file training.seed": (str(seed), str(seed)), "Python": ("3", "3")})


def test_ranks_of_one_kind_share_a_line():
    statements = {rank: statement(f"node{rank // 4}", seed=int(rank in (2, 6))) for rank in range(8)}
    assert describe_differences(statements).splitlines()[1:] == [
        "    run file training.seed   rank 0-1, 3 on node0, rank 4-5, 7 on node1   0",
        "                             rank 2 on node0, rank 6 on node1             1",
    ]
    assert describe_differences({rank: statement("node", 3) for rank in range(8)}) == ""


def test_long_differences_are_cut():
    def many(value: int) -> Statement:
        return Statement("node", digest=str(value), facts={f"run file a.{key}": (str(value), "x") for key in range(50)})

    lines = describe_differences({0: many(0), 1: many(1)}).splitlines()
    assert len(lines) == 1 + 2 * 20 + 1
    assert lines[-1] == "    and 30 more"
