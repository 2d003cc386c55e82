"""What a pipe and a terminal see."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from fvd.console import PlainProgress, aligned, note, progress, table


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
    assert capsys.readouterr().err == "training 120/4000  loss=0.1235  3.1 s/it  eta 3:20:28\n"


def test_first_last_and_at_most_one_line_each_interval(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    bar = PlainProgress("x", 100, 0, every_seconds=10, clock=clock)
    run_steps(clock, bar, 100, 1.0)
    bar.close()
    counts = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert counts == [f"{done}/100" for done in (1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100)]


def test_an_interrupted_bar_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with progress("x", 10, every_seconds=1000) as bar:
            for _ in range(7):
                bar.advance()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/10", "7/10"]


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
    assert capsys.readouterr().err == ""


def test_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    table(["clip", "verdict"], [["a.mp4", "kept"], ["longer [red]name[/].mp4", "dropped"]])
    assert capsys.readouterr().out.splitlines() == [
        "clip                     verdict",
        "a.mp4                    kept",
        "longer [red]name[/].mp4  dropped",
    ]
    assert aligned(["a"], []) == ["a"]


def test_progress_goes_to_stderr_and_tables_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("x", 1) as bar:
        bar.advance()
    note("a remark")
    table(["clip"], [["a.mp4"]])
    printed = capsys.readouterr()
    assert printed.out == "clip\na.mp4\n"
    assert printed.err.splitlines()[0].startswith("x 1/1")
    assert printed.err.splitlines()[1:] == ["a remark"]


def test_a_pause_does_not_count_for_the_rate() -> None:
    """Steps of 2 s with a validation of 500 s after every tenth."""
    clock = Clock()
    bar = PlainProgress("x", 1000, 0, every_seconds=1e9, clock=clock)
    for _ in range(10):
        run_steps(clock, bar, 10, 2.0)
        with bar.paused():
            clock.now += 500
        assert bar.seconds_each() == pytest.approx(2.0)
    assert bar.status().endswith("eta 0:30:00")
    run_steps(clock, bar, 1, 2.0)
    assert bar.seconds_each() == pytest.approx(2.0)


def test_a_pause_that_fails_ends() -> None:
    clock = Clock()
    bar = PlainProgress("x", 1000, 0, every_seconds=1e9, clock=clock)

    def fail() -> None:
        clock.now += 500
        raise RuntimeError

    with pytest.raises(RuntimeError), bar.paused():
        fail()
    run_steps(clock, bar, 3, 4.0)
    assert bar.seconds_each() == pytest.approx(4.0)


def test_the_rate_is_a_mean_over_steps_of_two_lengths() -> None:
    """A student that is updated every fourth step: the ETA needs the mean, 1.5 s, and not the usual step, 1 s."""
    clock = Clock()
    bar = PlainProgress("x", 1000, 0, every_seconds=1e9, clock=clock)
    for _ in range(50):
        run_steps(clock, bar, 3, 1.0)
        run_steps(clock, bar, 1, 3.0)
    assert bar.seconds_each() == pytest.approx(1.5)


def on_a_terminal(code: str, *, stdout: IO[bytes] | None = None) -> str:
    """What Python code writes to a terminal of 100 columns, which its stderr is, and its stdout unless that goes
    elsewhere."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=follower if stdout is None else stdout, stderr=follower, env=environment
    )
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
    text = b"".join(chunks).decode()
    assert process.wait() == 0, text
    return text


def screen(text: str) -> list[str]:
    """The lines that a terminal shows after these bytes: cursor up, carriage return, erase line, and line feed."""
    lines, row, column = [""], 0, 0
    for control, plain in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", text):
        if plain:
            lines[row] = lines[row][:column].ljust(column) + plain + lines[row][column + len(plain) :]
            column += len(plain)
        elif control == "\r":
            column = 0
        elif control == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif control.endswith("A"):
            row -= int(control[2:-1] or 1)
            assert row >= 0
        elif control.endswith("K"):
            lines[row] = ""
    return [line.rstrip() for line in lines if line.strip()]


def test_one_bar_inside_another() -> None:
    """Validation inside training: one display of two lines, and at the end the outer one alone."""
    text = on_a_terminal(
        "import logging, sys\n"
        "from fvd.console import note, progress\n"
        "with progress('training', 2) as outer:\n"
        "    outer.advance(loss=0.5)\n"
        "    with outer.paused(), progress('validating', 3) as inner:\n"
        "        for _ in range(3): inner.advance()\n"
        "        note('in the middle')\n"
        "        outer._bar.refresh()\n"
        "    with progress('again', 1) as inner: inner.advance()\n"
        "    outer.advance(loss=0.25)\n"
        "with progress('later', 1) as bar: bar.advance()\n"
    )
    assert "validating" in text
    assert "3/3" in text
    shown = screen(text)
    assert len(shown) == 3, shown
    assert shown[0] == "in the middle"
    assert shown[1].startswith("training ━")
    assert "2/2 loss=0.25" in shown[1]
    assert shown[2].startswith("later ━")


def test_an_error_inside_both_bars_leaves_the_terminal_usable() -> None:
    text = on_a_terminal(
        "from fvd.console import progress\n"
        "try:\n"
        "    with progress('a', 2) as outer, progress('b', 2) as inner:\n"
        "        raise RuntimeError\n"
        "except RuntimeError: pass\n"
        "with progress('c', 1) as bar: bar.advance()\n"
    )
    assert screen(text)[-1].startswith("c ━")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 2  # the cursor is hidden and shown again


def test_stdout_in_a_pipe_stays_there_while_a_bar_runs(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        text = on_a_terminal(
            "from fvd.console import progress\nwith progress('x', 1) as bar:\n    print('a result')\n    bar.advance()\n",
            stdout=file,
        )
    assert (tmp_path / "out").read_text() == "a result\n"
    assert "a result" not in text
    assert "━" in text
    assert "1/1" in text


def test_stderr_in_a_pipe_gets_lines_while_stdout_is_a_terminal() -> None:
    text = on_a_terminal(
        "import subprocess, sys\n"
        "code = 'from fvd.console import progress\\nwith progress(\"x\", 1) as bar: bar.advance()'\n"
        "print(subprocess.run([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True).stderr)\n"
    )
    assert text.startswith("x 1/1")
    assert "━" not in text


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
