"""`Plugins`: everything that is installed, by name."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fvd.errors import PluginError, Problem
from fvd.plugins.discovery import ask_the_authors, canonical, find_candidates, in_order
from fvd.plugins.faults import describe
from fvd.plugins.hooks import HOOK_NAMES, HOOK_RETURNS
from fvd.plugins.loading import load_plugin
from fvd.plugins.local import local_candidates
from fvd.plugins.records import LoadedPlugin, PluginRecord
from fvd.plugins.selection import check_switches, find_disabled, find_present, find_switches
from fvd.plugins.trace import measure, switched_on
from fvd.specs import FamilySpec, MethodSpec, Spec

if TYPE_CHECKING:
    from fvd.config.check import CheckContext
    from fvd.plugins.findings import Finding

KINDS = tuple(spec_class.kind for spec_class in HOOK_RETURNS.values())
"""``family``, ``method``, ``sampler``, …"""

STRICT_VARIABLE = "FVD_STRICT_PLUGINS"


def split_kind(word: str) -> tuple[str, str]:
    """``("method", "finetune")`` for ``method:finetune``, as `fvd plugins list` prints it; ``("", "wan")`` for ``wan``."""
    kind, _, name = word.partition(":")
    return (kind, name) if kind in KINDS and name else ("", word)


def load_plugins(
    *,
    disable: Collection[str] = (),
    only: Collection[str] | None = None,
    request: Collection[str] = (),
    mentioned: Collection[str] = (),
    files: Collection[str] = (),
    strict: bool = False,
) -> Plugins:
    """Load every installed plugin that is not switched off, each on its own: one that fails becomes a record.

    Names are those of a plugin (its entry point), of a distribution, or ``distribution:plugin``, in any spelling.

    disable: not to be imported. only: if given, import no other than these and core. request: plugins of the group
    ``fvd.plugins.on_request`` to load as well; ``only`` and FVD_PLUGINS request what they name too. mentioned: words
    that are perhaps such names, as a run file uses them. files: local plugins, ``my_method.py``. FVD_DISABLE_PLUGINS and
    FVD_PLUGINS (unset: all; empty: none but core; a list: only those) apply as well. strict, or FVD_STRICT_PLUGINS=1:
    a plugin that is anything but ok or disabled is an error, and so are a component that two plugins provide (P07) and an
    editable installation that is out of date (W02).

    Raises PluginError for a name that means no installed plugin, and for a file that cannot be used.
    """
    candidates = in_order([*find_candidates(), *local_candidates(files)])
    switches = find_switches(disable, only, request, os.environ)
    check_switches(switches, candidates)
    present = find_present(switches, mentioned, candidates)
    disabled = find_disabled(switches, present)
    enabled = [candidate for candidate in present if candidate not in disabled]
    # What a plugin prints while it loads must not end up in the output of `fvd plugins list --json`.
    with contextlib.redirect_stdout(sys.stderr):
        claimants = [*enabled, *(candidate for candidate in candidates if candidate.of_core and candidate not in enabled)]
        loaded = [load_plugin(candidate, claimants, disabled) for candidate in present]
    plugins = Plugins(loaded, on_request=[candidate.name for candidate in candidates if candidate not in present])
    if strict or switched_on(STRICT_VARIABLE):
        from fvd.plugins.findings import findings_of

        faulty = [plugin for plugin in loaded if plugin.record.state not in ("ok", "disabled")]
        _refuse(faulty, list(findings_of(plugins)), with_traceback=True)
    _refuse([plugin for plugin in loaded if plugin.record.file and plugin.record.code not in ("", "P10")])
    return plugins


def _refuse(plugins: list[LoadedPlugin], findings: Sequence[Finding] = (), *, with_traceback: bool = False) -> None:
    """Raise one PluginError for all of ``plugins`` and ``findings``, where there are any."""
    if not plugins and not findings:
        return
    from fvd.plugins.refusal import refusal

    raise refusal(plugins, findings, with_traceback=with_traceback)


@dataclass(frozen=True, kw_only=True)
class PluginOptions:
    """What a command line says about plugins: the same for every command. See `load_plugins`."""

    disable: tuple[str, ...] = ()
    request: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    strict: bool = False

    def load(self, *, only: Collection[str] | None = None, mentioned: Collection[str] = ()) -> Plugins:
        """The plugins that the command line allows, and with ``only`` and ``mentioned`` what a run file says."""
        return load_plugins(
            disable=self.disable, only=only, request=self.request, mentioned=mentioned, files=self.files, strict=self.strict
        )


def _exact_name(record: PluginRecord, spec: Spec, rivals: Collection[PluginRecord]) -> str:
    """rivals: all that provide a component of that name, where they are several."""
    if not rivals or record.of_core:
        return spec.name
    # Two plugins of one distribution are told apart by plugin name.
    shared = sum(rival.distribution == record.distribution for rival in rivals) > 1
    return f"{record.name if shared else record.distribution}:{spec.name}"


def _of_a_stranger(problem: Problem, record: PluginRecord) -> Problem:
    """A finding of a plugin that the run does not use."""
    message = f"{problem.message} (says plugin {record}, which this run does not use)"
    return replace(problem, message=message, severity="warning" if problem.severity == "error" else problem.severity)


class Plugins:
    """The plugins of one process. Names are short (``wan``), or qualified by a distribution (``acme-wan:wan``). A short name
    that core provides means core's, always: nobody stops the runs of others by taking it."""

    def __init__(self, loaded: list[LoadedPlugin], *, on_request: Collection[str] = ()) -> None:
        self._loaded = loaded
        self.on_request = tuple(on_request)
        """Names of installed plugins that nobody has asked for; they have no record."""
        self._reported: set[tuple[str, str]] = set()

    # --- what there is ---
    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """All installed plugins, usable or not, and those that were asked for; sorted by (distribution, name)."""
        return tuple(plugin.record for plugin in self._loaded)

    def specs(self, kind: str) -> list[Spec]:
        """All descriptors of a kind, ambiguous names included."""
        return [spec for _, spec in self._of_kind(kind)]

    def names(self, kind: str) -> list[str]:
        """What a run file may say, sorted: short names, and qualified ones where a short name is ambiguous."""
        shared = self._shared(kind)
        return sorted(_exact_name(record, spec, shared.get(spec.name, [])) for record, spec in self._of_kind(kind))

    def name_of(self, spec: Spec) -> str:
        """What a run file calls this component, one of `names`."""
        return _exact_name(self.owner(spec), spec, self._shared(spec.kind).get(spec.name, []))

    def validator_of(self, family: FamilySpec) -> str:
        """What a run file would call the family's validator."""
        return self._named_by(family, "validator", family.validator)

    def dataset_kind_of(self, family: FamilySpec) -> str:
        """What a run file would call the family's kind of data."""
        return self._named_by(family, "dataset_kind", family.dataset_kind)

    def _named_by(self, family: FamilySpec, kind: str, name: str) -> str:
        """A component that a family's descriptor calls ``name``: that of the family's own distribution, where it has one, for
        its authors know of no other."""
        owner = self.owner(family)
        own = (record for record, spec in self._of_kind(kind) if spec.name == name)
        return f"{owner.distribution}:{name}" if any(record.distribution == owner.distribution for record in own) else name

    def ambiguous(self, kind: str) -> dict[str, list[PluginRecord]]:
        """Short names that several plugins provide, with those plugins. Nobody wins them."""
        shared = self._shared(kind).items()
        return {name: records for name, records in shared if not any(record.of_core for record in records)}

    def behind_core(self, kind: str) -> list[Spec]:
        """Components of a name that is core's: they are reached by what `name_of` says, and not by that name."""
        shared = self._shared(kind)
        return [
            spec
            for record, spec in self._of_kind(kind)
            if not record.of_core and any(rival.of_core for rival in shared.get(spec.name, []))
        ]

    def _shared(self, kind: str) -> dict[str, list[PluginRecord]]:
        """Short names that several plugins provide, with those plugins."""
        providers: dict[str, list[PluginRecord]] = {}
        for record, spec in self._of_kind(kind):
            providers.setdefault(spec.name, []).append(record)
        return {name: records for name, records in providers.items() if len(records) > 1}

    def owner(self, spec: Spec) -> PluginRecord:
        """The plugin that a descriptor came from. Raises ValueError for one that is not from here."""
        for plugin in self._loaded:
            if any(spec is own for own in plugin.specs):
                return plugin.record
        raise ValueError(f"{spec.kind} {spec.name!r} is not a descriptor of an installed plugin")

    # --- by name ---
    def spec(self, kind: str, name: str) -> Spec:
        """The descriptor that ``name`` means. Raises PluginError: unknown, unusable, not installed, or ambiguous."""
        found = self._find(kind, name)
        if len(found) == 1:
            return found[0][1]
        from fvd.plugins import missing

        if found:
            raise missing.ambiguous(kind, name, [record for record, _ in found])
        raise missing.unknown(self, kind, name)

    def meant_by(self, word: str) -> list[Spec]:
        """The components that ``word`` means: ``wan``, ``acme-wan:wan``, and with a kind, ``family:wan``. Perhaps none, or of
        several plugins."""
        kind, name = split_kind(word)
        return [spec for one in ([kind] if kind else KINDS) for _, spec in self._find(one, name)]

    def load(self, kind: str, name: str) -> Any:
        """Import what the descriptor's target names. Raises PluginError naming distribution, version and target."""
        spec = self.spec(kind, name)
        loaded = self._import_target(spec, spec.target)
        if not callable(loaded):
            raise self._misdescribed(spec, f"{spec.target} is not callable")
        return loaded

    def load_config(self, kind: str, name: str) -> Any:
        """Import the config model of a family or a method."""
        spec = self.spec(kind, name)
        if not isinstance(spec, (FamilySpec, MethodSpec)):
            raise ValueError(f"a {kind} has no config model")
        from fvd.config.models import MethodConfig, PipelineConfig

        model = self._import_target(spec, spec.config)
        wanted = PipelineConfig if isinstance(spec, FamilySpec) else MethodConfig
        if not isinstance(model, type) or not issubclass(model, wanted):
            raise self._misdescribed(spec, f"{spec.config} is not a subclass of fvd.{wanted.__name__}")
        return model

    def _misdescribed(self, spec: Spec, what: str) -> PluginError:
        owner = self.owner(spec)
        cure = ask_the_authors(owner.distribution)
        return PluginError(f"{spec.kind} {spec.name!r} of plugin {owner}: {what} [P09]", cure=cure)

    def _import_target(self, spec: Spec, target: str) -> Any:
        from fvd.plugins.targets import import_target

        return import_target(self.owner(spec), f"{spec.kind} {spec.name!r}", target)

    def _of_kind(self, kind: str) -> list[tuple[PluginRecord, Spec]]:
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; kinds are {', '.join(KINDS)}")
        return [(plugin.record, spec) for plugin in self._loaded for spec in plugin.specs if spec.kind == kind]

    def _find(self, kind: str, name: str) -> list[tuple[PluginRecord, Spec]]:
        qualifier, colon, short = name.rpartition(":")
        found = [(record, spec) for record, spec in self._of_kind(kind) if spec.name == short]
        if not colon:
            return [pair for pair in found if pair[0].of_core] or found
        # A distribution first: the plugin of another distribution may go by the same word.
        of_distribution = [pair for pair in found if canonical(pair[0].distribution) == canonical(qualifier)]
        return of_distribution or [pair for pair in found if canonical(pair[0].name) == canonical(qualifier)]

    # --- hooks ---
    def check_config(self, ctx: CheckContext) -> list[Problem]:
        """What the plugins find in a run file. A check that fails is itself a finding that names its plugin. Errors count where
        the run uses the plugin that finds them; of another one they are warnings that name it."""
        problems: list[Problem] = []
        used = self._used_by(ctx)
        for record, call in self._callers("fvd_check_config"):
            try:
                # What a plugin prints must not end up in the output of `fvd check --json`.
                with contextlib.redirect_stdout(sys.stderr), measure(str(record), "fvd_check_config"):
                    found = [problem for result in call(ctx=ctx) for problem in result]
                strangers = [type(item).__name__ for item in found if type(item) is not Problem]
                if strangers:
                    raise TypeError(f"fvd_check_config() must return a list of Problem, got {', '.join(strangers)} in it")
                problems += found if record in used else [_of_a_stranger(problem, record) for problem in found]
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                message = f"plugin {record}: its check of the run file failed: {describe(error)}"
                cure = ask_the_authors(record.distribution)
                problems.append(Problem(message=message, cure=cure, severity="error" if record in used else "warning"))
        return problems

    def _used_by(self, ctx: CheckContext) -> set[PluginRecord]:
        """The plugins that the run file names or implies. Which sampler a method chooses for itself is not known here."""
        training, owners = ctx.run.training, {self.owner(ctx.method)}
        names = [("tracker", name) for name in training.trackers]
        names += [("sampler", kind)] if (kind := ctx.run.pipeline_config.sampler_kind) else []
        names += [("validator", training.validator)] if training.validator else []
        for family in ctx.families.values():
            owners.add(self.owner(family))
            names.append(("dataset_kind", self.dataset_kind_of(family)))
            names.append(("validator", self.validator_of(family)))
        return owners | {record for kind, name in names for record, _ in self._find(kind, name)}

    def notify(self, hook_name: str, **kwargs: object) -> None:
        """Tell every plugin. One that fails is logged, once for each hook, and the run goes on."""
        for record, call in self._callers(hook_name):
            try:
                with measure(str(record), hook_name):
                    call(**kwargs)
            except KeyboardInterrupt:
                raise
            except BaseException:
                self._report_once(record, hook_name)

    def _report_once(self, record: PluginRecord, hook_name: str) -> None:
        import logging

        place = (f"{record.distribution}:{record.name}", hook_name)
        if place not in self._reported:
            self._reported.add(place)
            logging.getLogger("fvd.plugins").exception("plugin %s failed in %s; the run goes on", record, hook_name)

    def _callers(self, hook_name: str) -> Iterator[tuple[PluginRecord, Any]]:
        if hook_name not in HOOK_NAMES:
            raise ValueError(f"unknown hook {hook_name!r}")
        for plugin in self._loaded:
            call = plugin.hooks.caller(hook_name) if plugin.hooks else None
            if call is not None:
                yield plugin.record, call
