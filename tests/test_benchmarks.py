"""The benchmarks run. What they measure is for people: no test asserts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHORT = {"plugins_list.py": ["--runs", "1"], "training_step.py": ["--steps", "10"]}


def test_none_is_left_out():
    assert sorted(path.name for path in FOLDER.glob("*.py")) == sorted(SHORT)


@pytest.mark.parametrize("script", SHORT)
def test_it_prints_a_ratio(script):
    finished = subprocess.run([sys.executable, str(FOLDER / script), *SHORT[script]], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "ratio" in finished.stdout
