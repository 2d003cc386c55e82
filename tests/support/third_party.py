"""The distributions of ``tests/thirdparty``, installed without pip: their metadata as pip would write it, from their
pyproject.toml, and their ``src`` folder on ``sys.path``. A real pip installs them in the tests of wheels."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fvd.testing import fake_dist, installed_in

FOLDER = Path(__file__).parents[1] / "thirdparty"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/pyproject.toml"))


def project(name: str) -> dict[str, Any]:
    """``[project]`` of a distribution of ``tests/thirdparty``."""
    table: dict[str, Any] = tomllib.loads((FOLDER / name / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


@contextmanager
def installed(site: Path, *names: str) -> Iterator[None]:
    """These distributions can be found and imported. site: an empty folder for their metadata."""
    with ExitStack() as stack:
        site.mkdir(parents=True, exist_ok=True)
        stack.enter_context(installed_in(site))
        for name in names:
            table = project(name)
            fake_dist(
                site,
                name,
                table["version"],
                entry_points=table["entry-points"]["fvd.plugins"],
                requires=table["dependencies"],
            )
            stack.enter_context(installed_in(FOLDER / name / "src"))
        yield
