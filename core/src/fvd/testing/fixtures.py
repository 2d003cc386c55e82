"""pytest fixtures for tests of plugins: ``pytest_plugins = ["fvd.testing.fixtures"]`` in a conftest.py.

fake_dist: a factory of installed distributions made of strings, for the duration of a test.
isolated_plugins: nothing else is installed but core and what the test adds.
run_fvd: the command line in a process of its own.

    def test_it_is_listed(fake_dist, isolated_plugins, run_fvd):
        fake_dist("fvd-x", entry_points={"x": "fvd_x.plugin"}, modules={"fvd_x.plugin": SOURCE})
        assert [it["name"] for it in run_fvd("plugins", "list", "--json").json()["plugins"]] == ["core", "x"]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from fvd.plugins import registry
from fvd.plugins.discovery import CORE_DISTRIBUTION, canonical
from fvd.plugins.selection import ALLOW_VARIABLE, DISABLE_VARIABLE
from fvd.testing.distributions import fake_dist as write_fake_dist
from fvd.testing.distributions import installed_in


@dataclass
class InstalledByTest:
    """What a test has installed, and whether anything else counts."""

    distributions: list[str] = field(default_factory=list)
    isolated: bool = False

    def allows(self, distribution: str) -> bool:
        return not self.isolated or canonical(distribution) in map(canonical, [CORE_DISTRIBUTION, *self.distributions])


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """What it printed. Raises AssertionError where the command failed or printed no JSON."""
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise AssertionError(f"exit status {self.returncode}, no JSON:\n{self.stdout}\n{self.stderr}") from error


class FakeDist(Protocol):
    """`fvd.testing.fake_dist` without its folder."""

    def __call__(self, name: str, version: str = "1.0", **arguments: Any) -> Path: ...


class RunFvd(Protocol):
    """``run_fvd("plugins", "list", cwd=…, env={…})``. env is added to the environment of the test."""

    def __call__(
        self, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> Finished: ...


@pytest.fixture
def _installed_by_test() -> InstalledByTest:
    return InstalledByTest()


@pytest.fixture
def fake_dist(tmp_path: Path, _installed_by_test: InstalledByTest) -> Iterator[FakeDist]:
    """``fake_dist("fvd-x", "0.1", entry_points=…, modules=…)`` installs until the end of the test; returns the folder."""
    site = tmp_path / "fake-site-packages"
    site.mkdir()

    def install(name: str, version: str = "1.0", **arguments: Any) -> Path:
        _installed_by_test.distributions.append(name)
        return write_fake_dist(site, name, version, **arguments)

    with installed_in(site):
        yield install


@pytest.fixture
def isolated_plugins(monkeypatch: pytest.MonkeyPatch, _installed_by_test: InstalledByTest) -> None:
    """No plugin but core's own and those of `fake_dist`; no environment variable switches any off. Holds for `run_fvd`."""
    for variable in (ALLOW_VARIABLE, DISABLE_VARIABLE, registry.STRICT_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    _installed_by_test.isolated = True
    find = registry.find_candidates
    monkeypatch.setattr(
        registry, "find_candidates", lambda: [it for it in find() if _installed_by_test.allows(it.distribution)]
    )


_ISOLATED_MAIN = """
import sys
from fvd.plugins import registry
from fvd.testing.fixtures import InstalledByTest
installed = InstalledByTest({distributions!r}, isolated=True)
find = registry.find_candidates
registry.find_candidates = lambda: [it for it in find() if installed.allows(it.distribution)]
from fvd.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def run_fvd(_installed_by_test: InstalledByTest) -> RunFvd:
    """`fvd` in a fresh interpreter, with everything on ``sys.path`` that is on it now."""

    def run(*arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300) -> Finished:
        if _installed_by_test.isolated:
            start = ["-c", _ISOLATED_MAIN.format(distributions=_installed_by_test.distributions)]
        else:
            start = ["-m", "fvd.cli.main"]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        finished = subprocess.run(
            [sys.executable, *start, *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
            timeout=timeout,
            check=False,
        )
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    return run
