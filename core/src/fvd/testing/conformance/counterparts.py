"""The toys that everything is tried with: a family with the toy method, a method with the toy families. Light."""

from __future__ import annotations

from fvd.plugins import Plugins
from fvd.plugins.fit import missing_primitives
from fvd.specs import FamilySpec, MethodSpec
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.outcomes import CheckFailure

REQUESTS = ("fvd-core:toy", "fvd-core:toy_noise")
"""The plugins, as `fvd.plugins.load_plugins` wants them requested."""

TOY_METHOD = "fvd-core:toy"
TOY_FAMILIES = ("fvd-core:toy", "fvd-core:toy_noise")
"""As a run file means them exactly."""


def fitting_toys(subject: Subject) -> list[str]:
    """The toy families that provide what a method needs. Raises CheckFailure where none does."""
    assert isinstance(subject.spec, MethodSpec)
    lacking: dict[str, str] = {}
    fitting = []
    for name in TOY_FAMILIES:
        missing = missing_primitives(subject.spec, toy_family(subject.plugins, name))
        if missing:
            lacking[name] = ", ".join(sorted({primitive for names in missing.values() for primitive in names}))
        else:
            fitting.append(name)
    if not fitting:
        said = "; ".join(f"{name} lacks {names}" for name, names in lacking.items())
        raise CheckFailure(f"no toy family provides what the method needs: {said}")
    return fitting


def toy_family(plugins: Plugins, name: str) -> FamilySpec:
    spec = plugins.spec("family", name)
    assert isinstance(spec, FamilySpec)
    return spec
