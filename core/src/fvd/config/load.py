"""A run file, read, completed and judged: every problem at once, or a `RunConfig`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fvd.config import legacy
from fvd.config.check import CheckContext
from fvd.config.models import MethodConfig, PipelineConfig, PluginsConfig, Recipe, RoleConfig, RunConfig, TrainingConfig
from fvd.config.overrides import apply_overrides
from fvd.config.semantics import check_run, missing_roles
from fvd.config.yaml_lines import Document, KeyPath, read_yaml, read_yaml_file
from fvd.errors import ConfigError, FvdError, PluginError, Problem, did_you_mean
from fvd.plugins import Plugins, load_plugins
from fvd.specs import FamilySpec, MethodSpec

SECTIONS = ("recipe", "roles", "training", "pipeline_config", "pipeline_config_path", "method_config", "plugins")

_SCHEMA_V2 = "Its sections: recipe {family, method}, roles {student: {path}}, a flat training, pipeline_config, method_config."


@dataclass
class LoadedRun:
    """config is None exactly when ``errors`` is not empty. ``text``: the run file as its author wrote it."""

    path: Path
    text: str
    config: RunConfig | None
    problems: list[Problem]
    plugins: Plugins

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    def require(self) -> RunConfig:
        """The configuration, or ConfigError with every error in the file."""
        if self.config is None or self.errors:
            raise ConfigError(self.errors)
        return self.config


def load_run_file(path: Path, overrides: Sequence[str] = (), *, disable: Sequence[str] = ()) -> LoadedRun:
    """Read a run file, load the plugins that it allows (and that ``disable`` does not name), and judge it.

    overrides: ``KEY=VALUE`` texts. Raises FvdError when there is no such file, or for a misspelt ``disable``; everything
    wrong inside the file is in ``problems``.
    """
    return _Reader(path, _read(path), disable).read(overrides)


def _read(path: Path) -> str:
    if path.is_dir():
        raise FvdError(f"{path} is a folder, not a run file", cure=f"Did you mean {path / 'run.yaml'}?")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = sorted(entry.name for entry in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        cure = f"YAML files in {path.parent}: {', '.join(there)}" if there else ""
        raise FvdError(f"there is no run file {path}{did_you_mean(path.name, there)}", cure=cure) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FvdError(f"cannot read {path}: {error}") from None


class _Reader:
    """One pass over one run file."""

    def __init__(self, path: Path, text: str, disable: Sequence[str]) -> None:
        self.path = path
        self.text = text
        self.disable = disable
        self.plugins = load_plugins(only=())  # core alone, until the file has said what it allows
        self.file = str(path)
        self.document = Document({})
        self.problems: list[Problem] = []

    def read(self, overrides: Sequence[str]) -> LoadedRun:
        self.document = read_yaml(self.text, self.file)
        if any(problem.message.startswith(("not valid YAML", "must be a mapping")) for problem in self.document.problems):
            return self.result(None)
        if _is_nested_layout(self.document.data):
            self.report((), "this is the nested layout (models, method, callbacks), and fvd reads schema v2", cure=_SCHEMA_V2)
            return self.result(None)
        apply_overrides(self.document, overrides)
        self.inline_pipeline_config()
        self.problems += self.document.problems
        self.unknown_sections()
        plugin_choice = self.parse(PluginsConfig, ("plugins",))
        self.load_plugins(plugin_choice)

        recipe = self.parse(Recipe, ("recipe",))
        method = self.find(MethodSpec, "method", recipe.method, ("recipe", "method")) if recipe else None
        self.problems += legacy.migrate(self.document, self.file, method, set(TrainingConfig.model_fields))
        roles = self.parse_roles()
        families = self.role_families(recipe, roles)
        training = self.parse(TrainingConfig, ("training",))
        family = self.find(FamilySpec, "family", recipe.family, ("recipe", "family")) if recipe else None
        pipeline_config = self.parse_plugin_config("family", recipe.family, "pipeline_config") if recipe and family else None
        method_config = self.parse_plugin_config("method", recipe.method, "method_config") if recipe and method else None

        if (
            any(problem.severity == "error" for problem in self.problems)
            or not (recipe and training and method and plugin_choice)
            or not isinstance(pipeline_config, PipelineConfig)
            or not isinstance(method_config, MethodConfig)
        ):
            self.check_roles_anyway(method, roles)
            return self.result(None)
        config = RunConfig(
            recipe=recipe,
            roles=roles,
            training=training,
            pipeline_config=pipeline_config,
            method_config=method_config,
            plugins=plugin_choice,
        )
        return self.judge(config, method, families)

    def judge(self, config: RunConfig, method: MethodSpec, families: dict[str, FamilySpec]) -> LoadedRun:
        context = CheckContext(config, method, families, lambda key: self.document.locate(tuple(key.split(".")), self.file))
        self.problems += check_run(context, self.plugins)
        if not any(problem.severity == "error" for problem in self.problems):
            self.problems += self.plugins.check_config(context)
        failed = any(problem.severity == "error" for problem in self.problems)
        return self.result(None if failed else _with_roles_completed(config, method))

    def result(self, config: RunConfig | None) -> LoadedRun:
        problems = self.problems or self.document.problems
        order = {"error": 0, "warning": 1, "note": 2}
        problems = sorted(problems, key=lambda problem: (order[problem.severity], problem.line or 0))
        return LoadedRun(self.path, self.text, config, problems, self.plugins)

    # --- sections ---
    def unknown_sections(self) -> None:
        for key in self.document.data:
            if key not in SECTIONS:
                hint = did_you_mean(key, SECTIONS)
                self.report((key,), f"unknown section{hint}", cure=f"A run file has: {', '.join(SECTIONS)}.")

    def inline_pipeline_config(self) -> None:
        """``pipeline_config_path: other.yaml`` becomes ``pipeline_config:``."""
        data = self.document.data
        if "pipeline_config_path" not in data:
            return
        given = data.pop("pipeline_config_path")
        if "pipeline_config" in data:
            self.report(
                ("pipeline_config_path",),
                "pipeline_config is given too",
                cure="Give one of pipeline_config and pipeline_config_path.",
            )
            return
        path = Path(str(given)).expanduser()
        try:
            other = read_yaml_file(path if path.is_absolute() or path.exists() else self.path.parent / path)
        except OSError as error:
            self.report(("pipeline_config_path",), f"cannot read {given}: {error.strerror or error}")
            return
        self.problems += other.problems
        data["pipeline_config"] = other.data
        self.document.places |= {("pipeline_config", *key): place for key, place in other.places.items()}

    def load_plugins(self, choice: PluginsConfig | None) -> None:
        """What ``plugins.only`` leaves out is never imported."""
        only = choice.only if choice else None
        try:
            self.plugins = load_plugins(disable=self.disable, only=only)
        except PluginError as error:
            if only is None:
                raise
            self.report(("plugins", "only"), error.message, cure=error.cure)
        for requirement in choice.require if choice else ():
            self.check_requirement(requirement)

    def check_requirement(self, text: str) -> None:
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.utils import canonicalize_name

        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            self.report(("plugins", "require"), f"{text!r} is not a requirement", cure="Write it like fvd-wan>=0.1,<0.2")
            return
        wanted = canonicalize_name(requirement.name)
        versions = [r.version for r in self.plugins.records if canonicalize_name(r.distribution) == wanted]
        if not versions:
            self.report(("plugins", "require"), f"{text}: {requirement.name} is not installed", cure=f"pip install '{text}'")
        elif not requirement.specifier.contains(versions[0], prereleases=True):
            self.report(("plugins", "require"), f"{text}: installed is {versions[0]}", cure=f"pip install '{text}'")

    def parse_roles(self) -> dict[str, RoleConfig]:
        given = self.document.data.get("roles")
        if not isinstance(given, dict) or not given:
            self.report(
                ("roles",), "must name at least one role", cure="For example:  roles: {student: {path: FOLDER_OR_HUB_ID}}"
            )
            return {}
        parsed = {role: self.parse(RoleConfig, ("roles", str(role))) for role in given}
        return {role: config for role, config in parsed.items() if config is not None}

    def role_families(self, recipe: Recipe | None, roles: dict[str, RoleConfig]) -> dict[str, FamilySpec]:
        found = {}
        for role, config in roles.items():
            if config.family and recipe and config.family != recipe.family:
                spec = self.find(FamilySpec, "family", config.family, ("roles", role, "family"))
            else:
                spec = self.find(FamilySpec, "family", recipe.family, ("recipe", "family"), quiet=True) if recipe else None
            if spec:
                found[role] = spec
        return found

    def check_roles_anyway(self, method: MethodSpec | None, roles: dict[str, RoleConfig]) -> None:
        """Missing roles are reported together with what else is wrong, not in the next round."""
        given = self.document.data.get("roles")
        if method and isinstance(given, dict):
            self.problems += missing_roles(method, list(given), lambda key: self.document.locate(key, self.file))

    def parse_plugin_config(self, kind: str, name: str, section: str) -> BaseModel | None:
        try:
            model = self.plugins.load_config(kind, name)
        except PluginError as error:
            self.report(("recipe", kind), error.message, cure=error.cure)
            return None
        return self.parse(model, (section,))

    # --- helpers ---
    def find(self, kind_type: type, kind: str, name: str, key: KeyPath, *, quiet: bool = False) -> Any:
        try:
            return self.plugins.spec(kind, name)
        except PluginError as error:
            if not quiet:
                self.report(key, error.message, cure=error.cure)
            return None

    def parse(self, model: type[BaseModel], path: KeyPath) -> Any:
        """The section at ``path`` as ``model``; its errors become problems. A missing optional section is ``{}``."""
        value: Any = self.document.data
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.report(path, "must be a mapping of `key: value` lines")
            return None
        try:
            return model.model_validate(value)
        except ValidationError as error:
            self.problems += self.explain(error, model, path)
            return None

    def explain(self, error: ValidationError, model: type[BaseModel], path: KeyPath) -> list[Problem]:
        problems: dict[KeyPath, Problem] = {}
        for detail in error.errors(include_url=False):
            field = tuple(str(part) for part in detail["loc"][:1])
            key = (*path, *field)
            if key not in problems:  # a union reports once for each of its branches
                problems[key] = self.explain_one(detail, model, key)
        return list(problems.values())

    def explain_one(self, detail: Any, model: type[BaseModel], key: KeyPath) -> Problem:
        file, line = self.document.locate(key, self.file)
        dotted = ".".join(key)
        fields = list(model.model_fields)
        if detail["type"] == "extra_forbidden":
            hint = did_you_mean(key[-1], fields)
            allowed = f"Keys of {'.'.join(key[:-1])}: {', '.join(fields) or 'none'}."
            return Problem(message=f"unknown key{hint}", key=dotted, file=file, line=line, cure="" if hint else allowed)
        if detail["type"] == "missing":
            return Problem(
                message="is required and not given", key=dotted, file=file, line=line, cure=_description(model, key[-1])
            )
        given = detail["input"]
        message = re.sub(r"^Value error, ", "", detail["msg"])
        shown = "" if isinstance(given, dict) else f", got {given!r}"
        return Problem(message=f"{message}{shown}", key=dotted, file=file, line=line, cure=_description(model, key[-1]))

    def report(self, key: KeyPath, message: str, *, cure: str = "") -> None:
        file, line = self.document.locate(key, self.file)
        self.problems.append(Problem(message=message, key=".".join(key), file=file, line=line, cure=cure))


def _is_nested_layout(data: dict[str, Any]) -> bool:
    """Files of a program whose sections are ``models:`` and ``method:`` with dotted paths to import."""
    return "recipe" not in data and "models" in data and "method" in data


def _description(model: type[BaseModel], field: str) -> str:
    info = model.model_fields.get(field)
    return f"{field}: {info.description}" if info and info.description else ""


def _with_roles_completed(config: RunConfig, method: MethodSpec) -> RunConfig:
    """Every role with its family and its ``trainable`` said."""
    roles = {}
    for name, role in config.roles.items():
        needs = method.roles.get(name)
        default = needs.trainable if needs else False
        trainable = role.trainable if role.trainable is not None else default
        roles[name] = role.model_copy(update={"family": config.role_family(name), "trainable": trainable})
    return config.model_copy(update={"roles": roles})
