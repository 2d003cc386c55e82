"""How a check ends, and the report of many. Light."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Literal

import fvd
from fvd.plugins.sources import installed_version
from fvd.testing.conformance.table import KIT_VERSION, Group

Status = Literal["passed", "failed", "expected", "unexpected pass", "skipped"]
"""``expected``: it failed, as the descriptor's ``expected_failures`` says. ``unexpected pass``: it should have, and did not."""


class CheckFailure(Exception):
    """What a check raises with one sentence for the plugin's author."""


class CheckSkipped(Exception):
    """The check does not apply to this component; the message says why."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """component: ``family:ltx``, or ``plugin`` for what concerns the plugin as a whole. message: why it failed or was
    skipped, a note, or nothing. error: what was raised. output: what the plugin printed meanwhile."""

    id: str
    title: str
    group: Group
    component: str
    status: Status
    message: str = ""
    seconds: float = 0.0
    error: BaseException | None = field(default=None, repr=False)
    output: str = field(default="", repr=False)

    @property
    def ok(self) -> bool:
        return self.status not in ("failed", "unexpected pass")

    def as_dict(self) -> dict[str, object]:
        return {
            "id": self.id,
            "title": self.title,
            "group": self.group,
            "component": self.component,
            "status": self.status,
            "message": self.message,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `run` found. plugin, distribution, version: whose."""

    plugin: str
    distribution: str
    version: str
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        return all(result.ok for result in self.results)

    def count(self, status: Status) -> int:
        return sum(result.status == status for result in self.results)

    @property
    def summary(self) -> str:
        """``17 passed, 1 expected failure``."""
        words: dict[Status, str] = {
            "passed": "passed",
            "failed": "failed",
            "unexpected pass": "passed unexpectedly",
            "expected": "expected failure",
            "skipped": "skipped",
        }
        counts = [(self.count(status), word) for status, word in words.items()]
        plural = {"expected failure": "expected failures"}
        return ", ".join(f"{count} {plural.get(word, word) if count > 1 else word}" for count, word in counts if count)

    def as_dict(self) -> dict[str, object]:
        """The certificate: JSON-ready."""
        return {
            "fvd_core": fvd.__version__,
            "kit": KIT_VERSION,
            "python": platform.python_version(),
            "torch": installed_version("torch"),
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
            "ok": self.ok,
            "results": [result.as_dict() for result in self.results],
        }
