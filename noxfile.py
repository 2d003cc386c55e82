"""Everything that is run on this repository: `nox` runs the checks, `nox -s demo` the demonstration, `nox -l` lists."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "imports", "tests", "pluggy_oldest", "wheels", "thirdparty"]
nox.options.reuse_existing_virtualenvs = True

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
DISTRIBUTIONS = ("core", "plugins/fvd-wan", "plugins/fvd-dmd2", "plugins/fvd-finetune")
SOURCES = tuple(f"{distribution}/src" for distribution in DISTRIBUTIONS)


def install(session: nox.Session, *packages: str) -> None:
    """Install with the pinned versions; a plain `torch` would pull gigabytes of CUDA packages."""
    session.install("-c", str(CONSTRAINTS), *packages)


def install_distributions(session: nox.Session) -> None:
    """The four distributions, built and installed as users get them: not editable."""
    install(session, *(f"./{distribution}" for distribution in DISTRIBUTIONS))


@nox.session
def demo(session: nox.Session) -> None:
    """The whole path on the tiny pipeline: clips, finetune, distil, sample, export. Ends with where the videos are."""
    install_distributions(session)
    session.run("python", "examples/tiny/demo.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The default test suite, against installed distributions."""
    install_distributions(session)
    install(session, "pytest", "pytest-xdist", "jsonschema")
    session.run("pytest", "-m", "not slow", "-n", "2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def pluggy_oldest(session: nox.Session) -> None:
    """Everything about plugins on the oldest pluggy that core allows, where hooks are found and checked differently."""
    install_distributions(session)
    install(session, "pytest")
    session.install("pluggy==1.6.*")
    patterns = ("core/test_plugins_*.py", "core/test_conformance_*.py", "core/test_cli_*.py", "core/test_error_pages.py")
    files = [str(path) for pattern in patterns for path in sorted((ROOT / "tests").glob(pattern))]
    session.run("pytest", *files, "tests/test_third_party.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install("ruff==0.17.5")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Static types of all four distributions."""
    install_distributions(session)
    install(session, "mypy==2.4.1", "types-PyYAML", "pytest")  # the kit has classes for pytest
    session.run("mypy")


@nox.session
def imports(session: nox.Session) -> None:
    """Who may import whom."""
    install_distributions(session)
    install(session, "import-linter==2.16")
    session.run("lint-imports")


def build_wheels(session: nox.Session, out: Path, *folders: Path | str) -> None:
    shutil.rmtree(out, ignore_errors=True)
    for folder in folders:
        session.run("python", "-m", "build", "--wheel", "--outdir", str(out), str(folder), silent=True)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build the four wheels, then use them as a stranger would: fresh environments, uninstalling, core alone."""
    session.install("build", "hatchling", "pytest")
    dist = ROOT / "dist"
    build_wheels(session, dist, *DISTRIBUTIONS)
    # Without conftest.py: this session's own environment has no fvd, on purpose.
    command = ("pytest", "--noconftest", "-m", "slow", "tests/test_clean_install.py")
    session.run(*command, *session.posargs, env={"FVD_WHEELS": str(dist), "OMP_NUM_THREADS": "2"})


@nox.session
def thirdparty(session: nox.Session) -> None:
    """Plugins of other people, good and bad, and what `fvd plugins new` writes: built, installed and used, all together."""
    session.install("build", "hatchling", "pytest")
    dist = ROOT / "dist/with-thirdparty"
    build_wheels(session, dist, *DISTRIBUTIONS, *sorted((ROOT / "tests/thirdparty").iterdir()))
    command = ("pytest", "--noconftest", "-m", "slow", "tests/test_thirdparty_wheels.py")
    session.run(*command, *session.posargs, env={"FVD_WHEELS": str(dist), "OMP_NUM_THREADS": "2"})


@nox.session
def bench(session: nox.Session) -> None:
    """Ratios of times and memory, into benchmarks/RESULTS.md; asserts none. Best on a machine that does nothing else."""
    install_distributions(session)
    session.run("python", "benchmarks/run_all.py", *session.posargs)
