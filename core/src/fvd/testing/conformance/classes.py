"""The checks as pytest classes. pytest is imported when pytest calls them.

    from fvd.testing import FamilyConformance

    class TestLtx(FamilyConformance):
        family = "ltx"

Each check is a test whose name carries its id (``pytest -k B104``). What a descriptor lists under ``expected_failures`` is
marked as such, strictly. Tests of one's own are welcome in the same class; checks cannot be overridden or taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from fvd.errors import FvdError
from fvd.testing.conformance.examination import Examination
from fvd.testing.conformance.runner import load_for_check
from fvd.testing.conformance.table import CHECKS, PLUGIN, Check, checks_of


class Conformance:
    """What the classes share. A model is built once for each class; its files go when the class is done."""

    kind: ClassVar[str]
    _examinations: ClassVar[dict[str, Examination] | None] = None

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if cls.__bases__ == (Conformance,):
            return
        cls._require_every_check()
        cls._examinations = None

    @classmethod
    def _require_every_check(cls) -> None:
        """Raise TypeError where a check of the kit is missing or is another than the kit's: replaced here or by a mixin,
        deleted, or set afterwards."""
        tests = _TESTS[cls.kind]
        found: dict[str, object] = {}
        for owner in reversed(cls.__mro__):
            found |= vars(owner)
        ids = {check.id for check in CHECKS}
        for name in sorted(tests.keys() | found.keys()):
            check_id = name.removeprefix("test_").partition("_")[0]
            if not name.startswith("test_") or check_id not in ids:
                continue
            if name not in tests or name not in found or found[name] is not tests[name]:
                raise TypeError(
                    f"{cls.__name__}.{name}: checks of the kit cannot be overridden or removed. A known failure belongs "
                    f"into expected_failures of the descriptor: {{{check_id!r}: 'reason'}}"
                )

    @classmethod
    def component(cls) -> str:
        """The name that the class is about: the attribute named after its kind."""
        try:
            name = getattr(cls, cls.kind)
        except AttributeError:
            raise FvdError(f"{cls.__name__} must say which {cls.kind} it checks: {cls.kind} = 'NAME'") from None
        return str(name)

    @classmethod
    def examinations(cls) -> dict[str, Examination]:
        """By kind: of the component, and of its plugin."""
        if cls._examinations is None:
            cls._require_every_check()
            name = cls.component()
            plugins = load_for_check(name)
            spec = plugins.spec(cls.kind, name)
            owner = plugins.owner(spec)
            cls._examinations = {cls.kind: Examination(plugins, owner, spec), PLUGIN: Examination(plugins, owner, None)}
        return cls._examinations

    @classmethod
    def teardown_class(cls) -> None:
        for examination in (cls._examinations or {}).values():
            examination.close()
        cls._examinations = None


_TESTS: dict[str, Mapping[str, Callable[[Any], None]]] = {}
"""Of each kind: the kit's own function of every check, by the name of its test. What the classes say can be changed."""


def _test_of(check: Check, kind: str) -> Callable[[Any], None]:
    def test(self: Conformance) -> None:
        import pytest

        result = self.examinations()[kind].result(check)
        match result.status:
            case "failed" | "unexpected pass":
                raise pytest.fail.Exception(f"{check.id} {check.title}: {result.message}", pytrace=False) from result.error
            case "expected":
                pytest.xfail(f"{check.id}: {result.message}")
            case "skipped":
                pytest.skip(f"{check.id}: {result.message}")

    test.__name__ = check.test_name
    test.__doc__ = f"{check.id}: {check.title}."
    return test


def _class_for(kind: str) -> type[Conformance]:
    tests = {check.test_name: _test_of(check, of) for of in (PLUGIN, kind) for check in checks_of(of)}
    _TESTS[kind] = tests
    name = f"{kind.capitalize()}Conformance"
    document = f'Every check of a {kind}: ``class TestMine({name}): {kind} = "NAME"``.'
    return type(name, (Conformance,), {"kind": kind, "__doc__": document, "__module__": __name__, **tests})


FamilyConformance = _class_for("family")
MethodConformance = _class_for("method")
SamplerConformance = _class_for("sampler")
ValidatorConformance = _class_for("validator")
TrackerConformance = _class_for("tracker")
