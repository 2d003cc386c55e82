"""The conformance kit: proves that a plugin works, in seconds, on a CPU, without a download.

    fvd plugins check ltx                                   on the command line
    class TestLtx(FamilyConformance): family = "ltx"        the same checks in pytest
    run(load_for_check("ltx"), "ltx").ok                    the same from Python

    table         every check in one line: id, title, what it applies to
    examination   one plugin or component: makes each check once, keeps what they share
    runner        all checks of a name, as a report
    classes       all checks of a component, as a pytest class
    static, contract, family_*, method_*, sampler_checks, …   the checks themselves

Importing it loads neither torch nor pytest.
"""

from __future__ import annotations

from fvd.testing.conformance.classes import FamilyConformance as FamilyConformance
from fvd.testing.conformance.classes import MethodConformance as MethodConformance
from fvd.testing.conformance.classes import SamplerConformance as SamplerConformance
from fvd.testing.conformance.classes import TrackerConformance as TrackerConformance
from fvd.testing.conformance.classes import ValidatorConformance as ValidatorConformance
from fvd.testing.conformance.outcomes import CheckFailure as CheckFailure
from fvd.testing.conformance.outcomes import CheckResult as CheckResult
from fvd.testing.conformance.outcomes import CheckSkipped as CheckSkipped
from fvd.testing.conformance.outcomes import Report as Report
from fvd.testing.conformance.runner import load_for_check as load_for_check
from fvd.testing.conformance.runner import run as run
from fvd.testing.conformance.table import CHECKS as CHECKS
from fvd.testing.conformance.table import KIT_VERSION as KIT_VERSION
from fvd.testing.conformance.table import Check as Check

__all__ = [
    "CHECKS",
    "KIT_VERSION",
    "Check",
    "CheckFailure",
    "CheckResult",
    "CheckSkipped",
    "FamilyConformance",
    "MethodConformance",
    "Report",
    "SamplerConformance",
    "TrackerConformance",
    "ValidatorConformance",
    "load_for_check",
    "run",
]
