"""`fvd plugins example`: a complete run file of any family and any method, made from their descriptors and config models.

Every key that the run file may have is in it: those with an example as they are, all others as comments with their
defaults. So it is the reference of a pair's keys, and a run file to begin with.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import TypeVar

from pydantic import ValidationError

from fvd.config.document import Key, keys_of, yaml_text
from fvd.config.models import MethodConfig, PipelineConfig, Recipe, RunConfig, SamplingLadder, TrainingConfig
from fvd.config.optimization import IN_TRAINING, EmaSettings, OptimizerSettings, takes_setting
from fvd.errors import PluginError
from fvd.plugins import Plugins
from fvd.plugins.discovery import CORE_DISTRIBUTION, LOCAL
from fvd.plugins.fit import missing_primitives
from fvd.specs import DatasetKindSpec, FamilySpec, MethodSpec

AnySpec = TypeVar("AnySpec", FamilySpec, MethodSpec)

WIDTH = 120
SCHEMA_FILE = "fvd.schema.json"
_SHOWN_OF_OPTIMIZER = ("name", "learning_rate", "betas", "weight_decay", "max_grad_norm")


def example_run_file(plugins: Plugins, family: str, method: str) -> str:
    """The text of a run file for ``family`` and ``method`` (names as in ``recipe:``), which `fvd check` accepts where the two
    fit and their `fvd.Example`s give what their configs require.

    Raises PluginError for a name that is not installed, and for a config model that cannot be loaded.
    """
    model = _spec(plugins, family, FamilySpec)
    algorithm = _spec(plugins, method, MethodSpec)
    pipeline_keys = keys_of(plugins.load_config("family", family))
    method_keys = keys_of(plugins.load_config("method", method))
    needs_data = _reads_folders(plugins, model)
    config = _method_config(plugins, method, algorithm)
    ladder = config.sampling_ladder() if config else None
    training = _training_values(model, algorithm, needs_data)
    training_keys = [key for key in keys_of(TrainingConfig) if needs_data or key.name != "data_path"]
    if ladder:
        training = {key: value for key, value in training.items() if key not in _ladder_values(ladder)}
        training_keys, pipeline_keys = _as_sampled(training_keys, ladder), _as_sampled(pipeline_keys, ladder)
    optimized = _optimized(config, algorithm, training) if config else {}
    of_roles = _said_by_roles((optimizer for optimizer, _ in optimized.values()), training)
    pipeline_values = {**model.example.pipeline_config, **algorithm.example.pipeline_config}
    lines = [
        *_heading(model, algorithm, training if needs_data else {}),
        "recipe:",
        f"  family: {yaml_text(family)}",
        f"  method: {yaml_text(method)}",
        "",
        "roles:",
        *_roles(model, algorithm, optimized, training),
        "",
        *_section("training", training_keys, training, dict.fromkeys(of_roles, "set here, it counts for every role; ")),
        "",
        *_section("pipeline_config", pipeline_keys, pipeline_values),
        "",
        *_section("method_config", method_keys, algorithm.example.method_config),
        *_requirements(plugins, model, algorithm),
    ]
    return "\n".join(lines) + "\n"


def first_that_fits(plugins: Plugins, *, family: str = "", method: str = "") -> str:
    """The other half of a pair: the name of the first installed method for ``family``, or family for ``method``. Empty
    where none fits."""
    if family:
        model = _spec(plugins, family, FamilySpec)
        methods = ((name, _spec(plugins, name, MethodSpec)) for name in plugins.names("method"))
        return next((name for name, spec in methods if not missing_primitives(spec, model)), "")
    algorithm = _spec(plugins, method, MethodSpec)
    families = ((name, _spec(plugins, name, FamilySpec)) for name in plugins.names("family"))
    return next((name for name, spec in families if not missing_primitives(algorithm, spec)), "")


def _spec(plugins: Plugins, name: str, spec_class: type[AnySpec]) -> AnySpec:
    spec = plugins.spec(spec_class.kind, name)
    assert isinstance(spec, spec_class)
    return spec


def _reads_folders(plugins: Plugins, family: FamilySpec) -> bool:
    try:
        kind = plugins.spec("dataset_kind", plugins.dataset_kind_of(family))
    except PluginError:  # `fvd check` says so; most kinds read folders
        return True
    return not isinstance(kind, DatasetKindSpec) or kind.reads_folders


def _training_values(family: FamilySpec, method: MethodSpec, needs_data: bool) -> dict[str, object]:
    values: dict[str, object] = {"output_dir": f"outputs/{family.name}-{method.name}"}
    if needs_data:
        values["data_path"] = f"data/{family.name}"
    values["max_train_steps"] = 1000
    return {**values, **method.example.training, **family.example.training}


def _heading(family: FamilySpec, method: MethodSpec, training: Mapping[str, object]) -> Iterator[str]:
    yield f"# yaml-language-server: $schema={SCHEMA_FILE}"
    yield f"#   (for editors; made by `fvd schema > {SCHEMA_FILE}`)"
    for spec in (method, family):
        yield f"# The {spec.kind} {spec.name}{f': {spec.summary}' if spec.summary else ''}"
    if training:
        model = family.example.path or "MODEL"
        yield "# Data:"
        yield f"#   fvd data prepare CLIPS --family {family.name} --model {model} --out {training['data_path']}"
    yield "# A key in a comment has the value that it has anyway; take away `# ` to set another."
    yield ""


def _method_config(plugins: Plugins, name: str, method: MethodSpec) -> MethodConfig | None:
    """What the method's example means; None where it leaves out what is required: `fvd check` asks for it."""
    try:
        config = plugins.load_config("method", name).model_validate(method.example.method_config)
    except ValidationError:
        return None
    return config if isinstance(config, MethodConfig) else None


def _ladder_values(ladder: SamplingLadder) -> dict[str, object]:
    return {
        "validation_sampling_steps": [len(ladder.timesteps)],
        "validation_guidance_scale": ladder.guidance_scale,
        "sampler_kind": ladder.sampler_kind,
    }


def _as_sampled(keys: list[Key], ladder: SamplingLadder) -> list[Key]:
    """A few-step student is sampled as it is trained, whatever the defaults are."""
    values = _ladder_values(ladder)
    return [replace(key, default=values.get(key.name, key.default)) for key in keys]


def _optimized(
    config: MethodConfig, method: MethodSpec, training: Mapping[str, object]
) -> dict[str, tuple[OptimizerSettings, EmaSettings | None]]:
    """How each trained role is optimized, as far as the examples say what a run needs."""
    try:
        run = RunConfig(
            recipe=Recipe(family="", method=method.name),
            roles={},
            training=TrainingConfig.model_validate(training),
            pipeline_config=PipelineConfig(),
            method_config=config,
        )
    except ValidationError:
        return {}
    trained = [role for role, needs in method.roles.items() if needs.trainable]
    return {role: (run.optimizer_of(role), run.ema_of(role)) for role in trained}


def _optimization_lines(optimizer: OptimizerSettings, ema: EmaSettings | None, training: Mapping[str, object]) -> Iterator[str]:
    """What is so anyway: the settings that people change, and those that differ from training's."""
    values = {key: _plain(value) for key, value in asdict(optimizer).items() if takes_setting(optimizer.name, key)}
    shown = {key: values[key] for key in _SHOWN_OF_OPTIMIZER if key in values}
    for key, value in values.items():
        if value != _plain(training.get(IN_TRAINING[key], _default_in_training(key))):
            shown[key] = value
    yield f"    # optimizer: {yaml_text(shown)}"
    further = ", ".join(key for key in values if key not in shown)
    yield from _remark(f"where it differs from training; further keys: {further}", "    #       ")
    said = yaml_text(asdict(ema) if ema else False)
    yield f"    # ema: {said}  # an average of its weights, {{decay: 0.999, start_step: 0}}; false = none"


def _default_in_training(key: str) -> object:
    return TrainingConfig.model_fields[IN_TRAINING[key]].get_default(call_default_factory=True)


def _said_by_roles(optimized: Iterable[OptimizerSettings], training: Mapping[str, object]) -> set[str]:
    """Keys of ``training:`` whose default is not what counts: the method knows better for a role."""
    return {
        key
        for settings in optimized
        for name, key in IN_TRAINING.items()
        if key not in training and getattr(settings, name) != _default_in_training(name)
    }


def _roles(
    family: FamilySpec,
    method: MethodSpec,
    optimized: Mapping[str, tuple[OptimizerSettings, EmaSettings | None]],
    training: Mapping[str, object],
) -> Iterator[str]:
    for role, needs in method.roles.items():
        path = family.example.path if needs.trainable else family.example.frozen_path or family.example.path
        said = "trained" if needs.trainable else "frozen"
        value = yaml_text({} if needs.made_by_method else {"path": path or "FOLDER_OR_HUB_ID"})
        if needs.optional:
            # No key in a comment: those have the value that they have anyway.
            yield f"  # optional ({said}{', made by the method' if needs.made_by_method else ''}):  {role}: {value}"
        elif needs.made_by_method:
            yield f"  {role}: {value}  # {said}, made by the method"
        else:
            yield f"  {role}:  # {said}"
            yield f"    path: {yaml_text(path or 'FOLDER_OR_HUB_ID')}"
            if role in optimized:
                yield from _optimization_lines(*optimized[role], training)


def _section(
    name: str, keys: list[Key], values: Mapping[str, object], notes: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """First the keys that have an example, then all others in comments, some with a note. Values of other keys are left aside:
    what a method suggests for a pipeline, a family may not have."""
    if not keys:
        yield f"{name}: {{}}  # it has no keys"
        return
    yield f"{name}:"
    for key in keys:
        if key.name in values:
            yield from _key_lines(f"  {key.name}: {yaml_text(_plain(values[key.name]))}", key)
        elif key.required:
            yield from _key_lines(f"  {key.name}:", key, note="REQUIRED; ")
    for key in keys:
        if key.name not in values and not key.required:
            value = f" {yaml_text(key.default)}" if not key.problem else ""
            note = f"{key.problem}; " if key.problem else notes.get(key.name, "")
            if key.keys:
                yield from _inner_section(key)
            else:
                yield from _key_lines(f"  # {key.name}:{value}", key, note=note)


def _inner_section(section: Key) -> Iterator[str]:
    """A key that is a section of its own, in comments."""
    yield from _key_lines(f"  # {section.name}:", replace(section, type="a section"))
    for key in section.keys:
        yield from _key_lines(f"  #   {key.name}: {yaml_text(key.default)}", key)


def _plain(value: object) -> object:
    """A descriptor may say tuples, YAML has lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _key_lines(text: str, key: Key, note: str = "") -> Iterator[str]:
    remark = f"{note}{key.type}{f': {key.first_sentence}' if key.description else ''}"
    if len(text) + len(remark) + 4 <= WIDTH:
        yield f"{text}  # {remark}"
        return
    yield text
    yield from _remark(remark, "  #       ")


def _remark(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _requirements(plugins: Plugins, family: FamilySpec, method: MethodSpec) -> Iterator[str]:
    versions = {record.distribution: record.version for record in (plugins.owner(family), plugins.owner(method))}
    # What comes with core needs no requirement, and a single file has no version.
    others = {name: version for name, version in sorted(versions.items()) if name not in (CORE_DISTRIBUTION, LOCAL)}
    ranges = [f"{name}>={version}" for name, version in others.items()]
    if ranges:
        yield ""
        yield f"# plugins: {{require: {yaml_text(ranges)}}}  # refuse to run without; `fvd plugins deps` prints them"
