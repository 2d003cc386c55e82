"""What `fvd_check_config` hooks see: a run file that parsed, the descriptors it uses, and a way to report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fvd.config.models import RunConfig
from fvd.errors import Problem, Severity
from fvd.specs import FamilySpec, MethodSpec


@dataclass(frozen=True)
class CheckContext:
    """run: parsed and typed. method: the run's method. families: each role's family, by role name.
    locate: dotted key -> (file, line or None)."""

    run: RunConfig
    method: MethodSpec
    families: Mapping[str, FamilySpec]
    locate: Callable[[str], tuple[str, int | None]]

    def problem(self, key: str, message: str, *, cure: str = "", severity: Severity = "error") -> Problem:
        """A finding about ``key`` (dotted, ``method_config.attn_kind``), with its file and line."""
        file, line = self.locate(key)
        return Problem(message=message, key=key, file=file, line=line, cure=cure, severity=severity)

    def check_attn_kind(self, role: str, attn_kind: str) -> list[Problem]:
        """A warning where the role's family does not have this kind of attention: dense is used in its place."""
        family = self.families[role]
        if attn_kind in family.attn_kinds:
            return []
        message = f"{attn_kind!r} has no effect yet with family {family.name!r}: the {role} uses dense attention"
        cure = f"The family has: {', '.join(sorted(family.attn_kinds))}."
        return [self.problem("method_config.attn_kind", message, cure=cure, severity="warning")]
