"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fvd.config.load import load_run_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ fvd ")]


def fvd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fvd.cli.main", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_the_listing_is_real():
    (transcript,) = [block for block in blocks("console") if block.startswith("$ fvd plugins list\n")]
    shown = transcript.removeprefix("$ fvd plugins list\n").splitlines()
    result = fvd("plugins", "list")
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert [line for line in shown if line not in lines] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_is_shown_exists(command):
    _, *arguments = shlex.split(command.split("  #")[0])
    options = [argument for argument in arguments if argument.startswith("--")]
    words = arguments[:2] if arguments[0] in ("data", "plugins", "wan") else arguments[:1]
    help_text = fvd(*words, "--help").stdout
    assert help_text, command
    help_text += fvd(words[0], "--help").stdout  # options about plugins
    assert [option for option in options if option not in help_text] == []


def test_the_run_file_is_valid(tmp_path):
    (run_file,) = blocks("yaml")
    path = tmp_path / "run.yaml"
    path.write_text(run_file, encoding="utf-8")
    assert load_run_file(path).errors == []


@pytest.mark.parametrize("path", re.findall(r"examples/\S+?\.yaml", README))
def test_files_that_are_named_exist(path):
    assert (ROOT / path).exists()


def test_ci_runs_the_readmes_test_command():
    command = "python3 -m pip install nox && python3 -m nox"
    assert re.search(rf"^\$ {re.escape(command)} +#", README, flags=re.MULTILINE)
    assert command in (ROOT / ".ci/run").read_text(encoding="utf-8").replace("--quiet ", "")
