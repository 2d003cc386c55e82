"""A fresh virtual environment, used as a stranger would. Imports nothing of fvd, which is not installed where tests of wheels
run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Environment:
    """A virtual environment with these wheels and what they require, and a folder to work in that has clips, prompts and run
    files for the tiny pipeline; both outside the checkout."""

    def __init__(self, folder: Path, *wheels: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        self.pip("install", "-c", str(ROOT / "constraints.txt"), *map(str, wheels))
        inputs = "import sys, pathlib, demo; demo.make_inputs(pathlib.Path(sys.argv[1]))"
        python = str(folder / "venv/bin/python")
        subprocess.run([python, "-c", inputs, str(self.work)], check=True, env={"PYTHONPATH": str(ROOT / "examples/tiny")})

    def pip(self, *arguments: str) -> None:
        subprocess.run([str(self.folder / "venv/bin/python"), "-m", "pip", "-q", *arguments], check=True)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        program, *arguments = command
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "OMP_NUM_THREADS": "2"}
        return subprocess.run(
            [str(self.folder / "venv/bin" / program), *arguments],
            cwd=self.work,
            env=environment,
            capture_output=True,
            text=True,
        )

    def fvd(self, *arguments: str) -> str:
        """A command that must succeed; what it printed on stdout."""
        result = self.run("fvd", *arguments)
        assert result.returncode == 0, f"fvd {' '.join(arguments)}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def fvd_fails(self, *arguments: str) -> str:
        """A command that must end with status 1 and no traceback; what it printed on stderr."""
        result = self.run("fvd", *arguments)
        assert result.returncode == 1, f"fvd {' '.join(arguments)}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
        return result.stderr
