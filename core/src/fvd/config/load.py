"""A run file, read, completed and judged: every problem at once, or a `RunConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fvd.config import legacy
from fvd.config.check import CheckContext
from fvd.config.explain import explain_detail
from fvd.config.models import MethodConfig, PipelineConfig, PluginsConfig, Recipe, RoleConfig, RunConfig, TrainingConfig
from fvd.config.overrides import apply_overrides
from fvd.config.plugin_section import mentioned_plugins, unmet_requirements
from fvd.config.semantics import PREPARE_DATA, check_run, missing_roles
from fvd.config.yaml_lines import Document, KeyPath, read_yaml, read_yaml_file
from fvd.errors import ConfigError, FvdError, PluginError, Problem, did_you_mean
from fvd.plugins import PluginOptions, Plugins, load_plugins
from fvd.plugins.selection import UnknownPluginName
from fvd.specs import FamilySpec, MethodSpec

SECTIONS = ("recipe", "roles", "training", "pipeline_config", "pipeline_config_path", "method_config", "plugins")

A_WHOLE_FILE = "`fvd plugins example NAME` prints a whole run file of a family or a method."

_NO_OPTIONS = PluginOptions()

_SCHEMA_V2 = "Its sections: recipe {family, method}, roles {student: {path}}, a flat training, pipeline_config, method_config."


@dataclass
class LoadedRun:
    """config is None exactly when ``errors`` is not empty. ``text``: the run file as its author wrote it. ``document``: what it
    and ``--set`` say, and where, older spellings moved to their places."""

    path: Path
    text: str
    config: RunConfig | None
    problems: list[Problem]
    plugins: Plugins
    document: Document = field(default_factory=lambda: Document({}))

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    def require(self) -> RunConfig:
        """The configuration, or ConfigError with every error in the file."""
        if self.config is None or self.errors:
            raise ConfigError(self.errors)
        return self.config


def load_run_file(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    options: PluginOptions = _NO_OPTIONS,
    plugins: Plugins | None = None,
) -> LoadedRun:
    """Read a run file, load the plugins that it and ``options`` allow, and judge it.

    overrides: ``KEY=VALUE`` texts. plugins: those to use, where they are loaded already. Raises FvdError when there is
    no such file, or for what ``options`` ask for and is not there; everything wrong inside the file is in ``problems``.
    """
    return _Reader(path, read_run_text(path), options, plugins).read(overrides)


def read_run_text(path: Path) -> str:
    """The text of a run file. Raises FvdError that says what stands in the way, with the nearest name."""
    if path.is_dir():
        inside = path / "run.yaml"
        raise FvdError(f"{path} is a folder, not a run file", cure=f"Did you mean {inside}?" if inside.exists() else "")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = sorted(entry.name for entry in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        cure = f"YAML files in {path.parent}: {', '.join(there)}" if there else ""
        raise FvdError(f"there is no run file {path}{did_you_mean(path.name, there)}", cure=cure) from None
    except UnicodeDecodeError:
        raise FvdError(f"{path} is not a text file") from None
    except OSError as error:
        raise FvdError(f"cannot read {path}: {error.strerror or error}") from None


class _Reader:
    """One pass over one run file."""

    def __init__(self, path: Path, text: str, options: PluginOptions, plugins: Plugins | None) -> None:
        self.path = path
        self.text = text
        self.options = options
        self.given_plugins = plugins
        self.file = str(path)
        self.document = Document({})
        self.problems: list[Problem] = []

    def read(self, overrides: Sequence[str]) -> LoadedRun:
        self.document = read_yaml(self.text, self.file)
        if not self.document.readable:
            return self.without_plugins()
        if not self.document.data:
            self.report((), "the file is empty: no `key: value` line is in it", cure=A_WHOLE_FILE)
            return self.without_plugins()
        if _is_nested_layout(self.document.data):
            self.report((), "this is the nested layout (models, method, callbacks), and fvd reads schema v2", cure=_SCHEMA_V2)
            return self.without_plugins()
        apply_overrides(self.document, overrides)
        self.inline_pipeline_config()
        self.problems += self.document.problems
        self.unknown_sections()
        plugin_choice = self.parse(PluginsConfig, ("plugins",))
        self.load_plugins(plugin_choice)

        recipe = self.parse(Recipe, ("recipe",))
        # By what the file says, so that a slip elsewhere in the recipe does not hide what is wrong in other sections.
        family, method = self.find_named("family"), self.find_named("method")
        self.problems += legacy.migrate(self.document, self.file, method, set(TrainingConfig.model_fields))
        roles = self.parse_roles()
        self.check_paths_are_given(method)
        families = self.role_families(family, roles)
        training = self.parse(TrainingConfig, ("training",))
        self.check_data_is_named(family)
        pipeline_config = self.parse_plugin_config("family", "pipeline_config") if family else None
        method_config = self.parse_plugin_config("method", "method_config") if method else None

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
        return self.result(None if failed else _with_ladder_said(_with_roles_completed(config, method)))

    def without_plugins(self) -> LoadedRun:
        """The result for a file that cannot say which plugins it allows: core alone is loaded."""
        self.plugins = load_plugins(only=())
        return self.result(None)

    def result(self, config: RunConfig | None) -> LoadedRun:
        problems = self.problems or self.document.problems
        order = {"error": 0, "warning": 1, "note": 2}
        problems = sorted(problems, key=lambda problem: (order[problem.severity], problem.line or 0))
        return LoadedRun(self.path, self.text, config, problems, self.plugins, self.document)

    # --- sections ---
    def unknown_sections(self) -> None:
        for key in self.document.data:
            if key in TrainingConfig.model_fields:
                self.report((key,), f"belongs into a section: training.{key}")
            elif key not in SECTIONS:
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
        except ValueError:  # no UTF-8, or a name that no file can have
            self.report(("pipeline_config_path",), f"{given!r} is not a text file")
            return
        self.problems += other.problems
        data["pipeline_config"] = other.data
        self.document.places |= {("pipeline_config", *key): place for key, place in other.places.items()}

    def load_plugins(self, choice: PluginsConfig | None) -> None:
        """What ``plugins.only`` leaves out is never imported."""
        only = choice.only if choice else None
        try:
            self.plugins = self.given_plugins or self.options.load(only=only, mentioned=mentioned_plugins(self.document.data))
        except UnknownPluginName as error:
            known = None if only is None else [name for name in only if name not in error.names]
            # Raises where the file is not to blame.
            self.plugins = self.options.load(only=known, mentioned=mentioned_plugins(self.document.data))
            self.report(("plugins", "only"), error.message, cure=error.cure)
        for message, cure in unmet_requirements(choice.require if choice else (), self.plugins):
            self.report(("plugins", "require"), message, cure=cure)

    def parse_roles(self) -> dict[str, RoleConfig]:
        given = self.document.data.get("roles")
        if not isinstance(given, dict) or not given:
            self.report(
                ("roles",), "must name at least one role", cure="For example:  roles: {student: {path: FOLDER_OR_HUB_ID}}"
            )
            return {}
        parsed = {role: self.parse(RoleConfig, ("roles", str(role))) for role in given}
        return {role: config for role, config in parsed.items() if config is not None}

    def check_paths_are_given(self, method: MethodSpec | None) -> None:
        """Every role is loaded from somewhere, but those that the method makes."""
        given = self.document.data.get("roles")
        for name, role in given.items() if isinstance(given, dict) else ():
            needs = method.roles.get(name) if method else None
            has_no_path = role is None or (isinstance(role, dict) and role.get("path", "") == "")
            if has_no_path and not (needs and needs.made_by_method):
                cure = "path: a local folder in diffusers format, or a hub id."
                self.report(("roles", name, "path"), "is required and not given", cure=cure)

    def role_families(self, recipe_family: FamilySpec | None, roles: dict[str, RoleConfig]) -> dict[str, FamilySpec]:
        found = {}
        for role, config in roles.items():
            spec = self.find("family", config.family, ("roles", role, "family")) if config.family else recipe_family
            if spec:
                found[role] = spec
        return found

    def check_roles_anyway(self, method: MethodSpec | None, roles: dict[str, RoleConfig]) -> None:
        """Missing roles are reported together with what else is wrong, not in the next round."""
        given = self.document.data.get("roles")
        if method and isinstance(given, dict):
            self.problems += missing_roles(method, list(given), lambda key: self.document.locate(key, self.file))

    def check_data_is_named(self, family: FamilySpec | None) -> None:
        """``training.data_path`` is required where the family's kind of data is read from folders."""
        name = self.plugins.dataset_kind_of(family) if family else ""
        kind = self.find("dataset_kind", name, ("recipe", "family")) if family else None
        section = self.document.data.get("training") or {}
        if kind and kind.reads_folders and isinstance(section, dict) and section.get("data_path") is None:
            self.report(("training", "data_path"), "is required and not given", cure=PREPARE_DATA)

    def find_named(self, kind: str) -> Any:
        """The descriptor that ``recipe.family`` or ``recipe.method`` names, or None where that is reported."""
        section = self.document.data.get("recipe")
        name = section.get(kind) if isinstance(section, dict) else None
        return self.find(kind, name, ("recipe", kind)) if isinstance(name, str) else None

    def parse_plugin_config(self, kind: str, section: str) -> BaseModel | None:
        try:
            model = self.plugins.load_config(kind, self.document.data["recipe"][kind])
        except PluginError as error:
            self.report(("recipe", kind), error.message, cure=error.cure)
            return None
        return self.parse(model, (section,))

    # --- helpers ---
    def find(self, kind: str, name: str, key: KeyPath) -> Any:
        try:
            return self.plugins.spec(kind, name)
        except PluginError as error:
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
            key = (*path, *self.key_of(detail["loc"], path))
            if key not in problems:  # a union reports once for each of its branches
                problems[key] = self.explain_one(detail, model, key, len(path))
        inside = {key[:length] for key in problems for length in range(len(path) + 1, len(key))}
        return [problem for key, problem in problems.items() if key not in inside]  # of branches the one that fits best

    def key_of(self, location: tuple[int | str, ...], path: KeyPath) -> KeyPath:
        """Where in the file pydantic's location lies: it goes on into branches of unions, which are no keys."""
        value: Any = self.document.data
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        keys: list[str] = []
        for part in location:
            if isinstance(value, dict) and part in value:
                keys.append(str(part))
                value = value[str(part)]
        return tuple(keys) or tuple(str(part) for part in location[:1])

    def explain_one(self, detail: Any, model: type[BaseModel], key: KeyPath, depth: int) -> Problem:
        file, line = self.document.locate(key, self.file)
        dotted = ".".join(key)
        message, cure = explain_detail(detail, model, key[depth:])
        return Problem(message=message, key=dotted, file=file, line=line, cure=cure)

    def report(self, key: KeyPath, message: str, *, cure: str = "") -> None:
        file, line = self.document.locate(key, self.file)
        self.problems.append(Problem(message=message, key=".".join(key), file=file, line=line, cure=cure))


def _is_nested_layout(data: dict[str, Any]) -> bool:
    """Files of a program whose sections are ``models:`` and ``method:`` with dotted paths to import."""
    return "recipe" not in data and "models" in data and "method" in data


def _with_roles_completed(config: RunConfig, method: MethodSpec) -> RunConfig:
    """Every role with its family, its ``trainable``, its optimizer and its EMA said."""
    roles = {}
    for name, role in config.roles.items():
        needs = method.roles.get(name)
        default = needs.trainable if needs else False
        trainable = role.trainable if role.trainable is not None else default
        roles[name] = role.model_copy(update={"family": config.role_family(name), "trainable": trainable})
    return config.model_copy(update={"roles": roles}).with_optimization_written_out()


def _with_ladder_said(config: RunConfig) -> RunConfig:
    """How a few-step student is sampled, said where it is said of others."""
    ladder = config.method_config.sampling_ladder()
    if ladder is None:
        return config
    said = {"validation_sampling_steps": (len(ladder.timesteps),), "validation_guidance_scale": ladder.guidance_scale}
    sampler = {"sampler_kind": ladder.sampler_kind}
    return config.model_copy(
        update={
            "training": config.training.model_copy(update=said),
            "pipeline_config": config.pipeline_config.model_copy(update=sampler),
        }
    )
