"""What a pipe and a terminal see."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from fvd.console import PlainProgress, aligned, progress, table


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run_steps(clock: Clock, bar: PlainProgress, steps: int, seconds: float) -> None:
    for _ in range(steps):
        clock.now += seconds
        bar.advance(loss=0.1234567)


def test_the_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    bar = PlainProgress("training", 4000, 119, every_seconds=10, clock=clock)
    run_steps(clock, bar, 1, 3.1)
    assert capsys.readouterr().out == "training 120/4000  loss=0.1235  3.1 s/it  eta 3:20:28\n"


def test_first_last_and_at_most_one_line_each_interval(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    bar = PlainProgress("x", 100, 0, every_seconds=10, clock=clock)
    run_steps(clock, bar, 100, 1.0)
    bar.close()
    counts = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert counts == [f"{done}/100" for done in (1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100)]


def test_an_interrupted_bar_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with progress("x", 10, every_seconds=1000) as bar:
            for _ in range(7):
                bar.advance()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1/10", "7/10"]


def test_the_eta_follows_the_recent_rate() -> None:
    clock = Clock()
    bar = PlainProgress("x", 1000, 0, every_seconds=1e9, clock=clock)
    run_steps(clock, bar, 1, 600.0)  # a slow start, compiling say
    run_steps(clock, bar, 99, 2.0)
    assert bar.seconds_each() == pytest.approx(2.0)
    assert bar.status().endswith("eta 0:30:00")


def test_what_was_done_before_does_not_count_for_the_rate() -> None:
    clock = Clock()
    bar = PlainProgress("x", 1000, 900, every_seconds=1e9, clock=clock)
    run_steps(clock, bar, 10, 4.0)
    assert bar.seconds_each() == pytest.approx(4.0)
    assert bar.status().endswith("eta 0:06:00")


def test_nothing_to_do_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("x", 0):
        pass
    assert capsys.readouterr().out == ""


def test_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    table(["clip", "verdict"], [["a.mp4", "kept"], ["longer [red]name[/].mp4", "dropped"]])
    assert capsys.readouterr().out.splitlines() == [
        "clip                     verdict",
        "a.mp4                    kept",
        "longer [red]name[/].mp4  dropped",
    ]
    assert aligned(["a"], []) == ["a"]


def on_a_terminal(code: str) -> str:
    """The output of Python code whose stdout is a terminal of 100 columns."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=follower, env=environment)
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    assert process.wait() == 0
    return b"".join(chunks).decode()


def test_a_terminal_gets_a_bar_and_a_framed_table() -> None:
    text = on_a_terminal(
        "from fvd.console import progress, table\n"
        "with progress('tr[a]ining', 3) as bar:\n"
        "    for step in range(3): bar.advance(loss=step / 4)\n"
        "table(['clip'], [['a [bold]b.mp4']])\n"
    )
    assert "tr[a]ining" in text
    assert "3/3" in text
    assert "loss=0.5" in text
    assert "━" in text
    assert "│ a [bold]b.mp4" in text


def test_rich_is_not_imported_in_a_pipe() -> None:
    code = (
        "import sys, fvd.console as c\n"
        "with c.progress('x', 1) as bar: bar.advance()\n"
        "c.table(['a'], [['b']])\n"
        "assert 'rich' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
