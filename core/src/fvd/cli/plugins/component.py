"""Everything there is to say about one component, from its descriptor and its config model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fvd.cli.plugins.output import labelled, words
from fvd.errors import PluginError
from fvd.plugins.fit import describe_fit
from fvd.specs import DatasetKindSpec, FamilySpec, MethodSpec, RoleNeeds, SamplerSpec, Spec

if TYPE_CHECKING:
    from fvd.config.document import Key
    from fvd.plugins import Plugins


@dataclass(frozen=True)
class Facts:
    """rows: (label, text). section: of the run file, where the component reads one; keys: what it may hold; problem: why
    that cannot be said."""

    rows: Sequence[tuple[str, str]]
    section: str = ""
    keys: Sequence[Key] = ()
    problem: str = ""


def facts_of(plugins: Plugins, spec: Spec) -> Facts:
    rows = [("target", spec.target), *_rows(plugins, spec)]
    rows += [("known failure", f"{check} {reason}") for check, reason in sorted(spec.expected_failures.items())]
    if not isinstance(spec, (FamilySpec, MethodSpec)):
        return Facts(rows)
    rows.append(("example", f"fvd plugins example {plugins.name_of(spec)} > run.yaml"))
    section = "pipeline_config" if isinstance(spec, FamilySpec) else "method_config"
    keys, problem = _keys(plugins, spec)
    return Facts(rows, section, keys, problem)


def _keys(plugins: Plugins, spec: FamilySpec | MethodSpec) -> tuple[Sequence[Key], str]:
    from fvd.config.document import keys_of

    try:
        return keys_of(plugins.load_config(spec.kind, plugins.name_of(spec))), ""
    except PluginError as error:
        return (), error.message


def _rows(plugins: Plugins, spec: Spec) -> list[tuple[str, str]]:
    match spec:
        case FamilySpec():
            return [
                ("config", spec.config),
                ("provides", words(spec.provides)),
                ("samplers", words(spec.samplers)),
                ("attn_kinds", words(spec.attn_kinds)),
                ("latent_space", spec.latent_space or "its own"),
                ("validator", spec.validator),
                ("dataset_kind", spec.dataset_kind),
                ("exports to", " ".join(spec.export_formats)),
                *(("method", f"{label}: {describe_fit(method, spec)}") for label, method in labelled(plugins, MethodSpec)),
            ]
        case MethodSpec():
            roles = [
                ("role", f"{', '.join([role, *_said_of(it)])}, needs {words(it.needs)}") for role, it in spec.roles.items()
            ]
            families = [("family", f"{label}: {describe_fit(spec, it)}") for label, it in labelled(plugins, FamilySpec)]
            return [("config", spec.config), ("needs", words(spec.needs)), *roles, *families]
        case SamplerSpec():
            takes = "a list or a number of steps" if spec.takes_timesteps else "a number of steps"
            fitting = [label for label, it in labelled(plugins, FamilySpec) if spec.scheduler in it.samplers]
            return [
                ("scheduler", spec.scheduler),
                ("timesteps", takes),
                ("made for", "few-step students" if spec.few_step else "any model"),
                *(("family", f"{label}: ✓") for label in fitting),
            ]
        case DatasetKindSpec():
            return [("data", "reads training.data_path" if spec.reads_folders else "makes its own; no training.data_path")]
    return []


def _said_of(role: RoleNeeds) -> list[str]:
    """``trained``, ``optional``, ``made by the method``."""
    said = {"optional": role.optional, "made by the method": role.made_by_method}
    return ["trained" if role.trainable else "frozen", *(word for word, holds in said.items() if holds)]


def describe_component(plugins: Plugins, spec: Spec) -> dict[str, object]:
    """The same for tools."""
    about: dict[str, object] = {
        "kind": spec.kind,
        "name": spec.name,
        "summary": spec.summary,
        "target": spec.target,
        "expected_failures": dict(spec.expected_failures),
    }
    match spec:
        case FamilySpec():
            about |= {
                "config": spec.config,
                "provides": sorted(spec.provides),
                "samplers": sorted(spec.samplers),
                "attn_kinds": sorted(spec.attn_kinds),
                "latent_space": spec.latent_space or None,
                "validator": spec.validator,
                "dataset_kind": spec.dataset_kind,
                "export_formats": list(spec.export_formats),
                "methods": {label: describe_fit(method, spec) for label, method in labelled(plugins, MethodSpec)},
            }
        case MethodSpec():
            about |= {
                "config": spec.config,
                "needs": sorted(spec.needs),
                "roles": {
                    role: {
                        "trainable": it.trainable,
                        "needs": sorted(it.needs),
                        "optional": it.optional,
                        "made_by_method": it.made_by_method,
                    }
                    for role, it in spec.roles.items()
                },
                "families": {label: describe_fit(spec, family) for label, family in labelled(plugins, FamilySpec)},
            }
        case SamplerSpec():
            about |= {"scheduler": spec.scheduler, "takes_timesteps": spec.takes_timesteps, "few_step": spec.few_step}
        case DatasetKindSpec():
            about |= {"reads_folders": spec.reads_folders}
    if isinstance(spec, (FamilySpec, MethodSpec)):
        keys, problem = _keys(plugins, spec)
        about |= {"keys": [key.as_dict() for key in keys], "keys_problem": problem or None}
    return about
