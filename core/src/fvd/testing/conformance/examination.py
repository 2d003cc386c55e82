"""One subject under examination: every check is made once, what it needs is built once. The runner and the pytest classes
both go through here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fvd.errors import FvdError
from fvd.plugins import PluginRecord, Plugins
from fvd.plugins.faults import describe, place_in
from fvd.specs import FamilySpec, MethodSpec, Spec
from fvd.testing.conformance.outcomes import CheckFailure, CheckResult, CheckSkipped, Status
from fvd.testing.conformance.table import CHECKS, PLUGIN, Check

if TYPE_CHECKING:
    from fvd.testing.conformance.family_build import FamilyBench
    from fvd.testing.conformance.method_build import MethodBench

_BY_ID = {check.id: check for check in CHECKS}


class Subject:
    """A plugin, or with ``spec`` one of its components, and what checks of it share.

    folder: empty at first, the subject's own, deleted at the end.
    """

    def __init__(self, plugins: Plugins, record: PluginRecord, spec: Spec | None, folder: Path) -> None:
        self.plugins = plugins
        self.record = record
        self._spec = spec
        self.folder = folder

    @property
    def kind(self) -> str:
        return self._spec.kind if self._spec else PLUGIN

    @property
    def label(self) -> str:
        """``family:ltx``, or ``plugin``."""
        return f"{self._spec.kind}:{self._spec.name}" if self._spec else PLUGIN

    @property
    def spec(self) -> Spec:
        assert self._spec is not None, "a check of a component was made of a plugin"
        return self._spec

    @property
    def name(self) -> str:
        """What a run file says to mean exactly this component: ``acme-wan:wan``."""
        return f"{self.record.distribution}:{self.spec.name}"

    @property
    def modules(self) -> list[str]:
        """In whose packages the plugin's own code lies."""
        return [*([self._spec.target.partition(":")[0]] if self._spec else []), self.record.module]

    @property
    def plugin_specs(self) -> list[Spec]:
        """Every descriptor of the subject's plugin."""
        from fvd.plugins.registry import KINDS

        return [spec for kind in KINDS for spec in self.plugins.specs(kind) if self.plugins.owner(spec) is self.record]

    @property
    def expected_failures(self) -> Mapping[str, str]:
        """Check id -> reason: the component's own, or of a plugin what any of its components says."""
        if self._spec:
            return self._spec.expected_failures
        return {check: reason for spec in self.plugin_specs for check, reason in spec.expected_failures.items()}

    def make_folder(self, name: str) -> Path:
        """A new empty folder that is deleted at the end."""
        folder = self.folder / name
        count = 1
        while folder.exists():
            count += 1
            folder = self.folder / f"{name}-{count}"
        folder.mkdir(parents=True)
        return folder

    @cached_property
    def family(self) -> FamilyBench:
        """The subject, a family, built. Raises what building raises."""
        from fvd.testing.conformance.family_build import FamilyBench

        assert isinstance(self.spec, FamilySpec)
        return FamilyBench(self)

    @cached_property
    def methods(self) -> list[MethodBench]:
        """The subject, a method, on every toy family that it fits."""
        from fvd.testing.conformance.method_build import toy_benches

        assert isinstance(self.spec, MethodSpec)
        return toy_benches(self)


class Examination:
    """Makes checks of one subject, each at most once. A context manager: its files go at the end."""

    def __init__(self, plugins: Plugins, record: PluginRecord, spec: Spec | None) -> None:
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="fvd-check-")))
        self.subject = Subject(plugins, record, spec, folder)
        self._results: dict[str, CheckResult] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def result(self, check: Check) -> CheckResult:
        """How ``check`` ends for this subject; never raises what the plugin raises, but for KeyboardInterrupt."""
        if check.id not in self._results:
            self._results[check.id] = self._examine(check)
        return self._results[check.id]

    def _examine(self, check: Check) -> CheckResult:
        in_the_way = [need for need in check.needs if self.result(_BY_ID[need]).status not in ("passed", "unexpected pass")]
        if in_the_way:
            return self._end(check, 0.0, CheckSkipped(f"{' and '.join(in_the_way)} must pass first"))
        started = time.monotonic()
        note, error = "", None
        try:
            with _own_random_state(check):
                note = check.function(self.subject) or ""
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # SystemExit, and what extensions panic with
            error = raised
        return self._end(check, time.monotonic() - started, error, note)

    def _end(self, check: Check, seconds: float, error: BaseException | None, note: str = "") -> CheckResult:
        reason = self.subject.expected_failures.get(check.id)
        message = self._explain(error) if error else note
        status: Status
        if isinstance(error, CheckSkipped):
            status = "skipped"
        elif error:
            status = "failed" if reason is None else "expected"
            message = message if reason is None else f"{reason} ({message})"
        elif reason is not None:
            status, message = "unexpected pass", f"it passes: remove it from expected_failures ({reason})"
        else:
            status = "passed"
        return CheckResult(
            id=check.id,
            title=check.title,
            group=check.group,
            component=self.subject.label,
            status=status,
            message=message,
            seconds=seconds,
            error=error,
        )

    def _explain(self, error: BaseException) -> str:
        if isinstance(error, (CheckFailure, CheckSkipped)):
            return str(error)
        text = str(error).strip() if isinstance(error, FvdError) else describe(error)
        places = (place_in(module, error) for module in self.subject.modules)
        return text + next((place for place in places if place), "")


@contextmanager
def _own_random_state(check: Check) -> Iterator[None]:
    """Every check sees the same global generators, and leaves those of the caller as they were."""
    if check.group == "static":  # nothing of torch is loaded
        yield
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
