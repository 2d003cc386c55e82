"""Descriptors: what a plugin's hooks return. Frozen, light (stdlib only), checked when they are made.

A descriptor names its implementation by an import string, ``"package.module:attribute"``, which is imported on first
use. So `fvd plugins list`, `fvd check` and `fvd --help` know everything about a plugin and import none of its code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fvd.errors import did_you_mean

PRIMITIVES: dict[str, str] = {
    "prepare_batch": "conditioning",
    "ensure_negative_conditioning": "conditioning",
    "negative_conditioning": "conditioning",
    "encode_prompts": "conditioning",
    "zero_conditioning": "conditioning",
    "num_train_timesteps": "schedule",
    "add_noise": "schedule",
    "shift_and_clamp_timestep": "schedule",
    "scheduler": "schedule",
    "predict": "prediction",
    "training_target": "prediction",
    "predict_x0": "prediction",
    "predict_noise": "prediction",
    "feature_widths": "features",
    "features": "features",
    "predict_x0_with_features": "features",
    "decode": "decoding",
    "latent_shape": "decoding",
}
"""The vocabulary: every primitive that an adapter may provide and a method may need, with its capability."""

SCHEDULE_PRIMITIVES = frozenset(
    {
        "num_train_timesteps",
        "add_noise",
        "shift_and_clamp_timestep",
        "training_target",
        "predict",
        "predict_x0",
        "predict_noise",
    }
)
"""What `fvd.FlowMatchingAdapter` and `fvd.DiffusionAdapter` have once ``predict`` is written."""

FEATURE_PRIMITIVES = frozenset({"feature_widths", "features", "predict_x0_with_features"})
"""What `fvd.BlockFeatures`, and with it `fvd.diffusers_format.TransformerFeatures`, adds to an adapter."""

TEXT_TO_VIDEO = frozenset(PRIMITIVES) - FEATURE_PRIMITIVES
"""What `fvd.TextToVideoAdapter` and `fvd.TextToVideoDiffusionAdapter` have once ``predict`` is written: everything but
`FEATURE_PRIMITIVES`."""

SAMPLING_PRIMITIVES = frozenset(
    {"encode_prompts", "negative_conditioning", "scheduler", "predict", "predict_x0", "add_noise", "decode", "latent_shape"}
)
"""What an adapter must provide for validation and `fvd sample`."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be text, got {value!r}")


def _check_word(what: str, value: object) -> None:
    _check_text(what, value)
    if not value:
        raise ValueError(f"{what} must not be empty")


def _check_flag(what: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, got {value!r}")


def _check_mapping(what: str, value: object) -> None:
    """A mapping with texts for keys; what stands under them is the caller's."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a mapping, got {value!r}")
    for key in value:
        _check_text(f"{what}: a key", key)


def _check_target(what: str, target: str) -> None:
    _check_text(what, target)
    if not _TARGET.fullmatch(target):
        raise ValueError(f"{what} must look like 'package.module:attribute', got {target!r}")


def _check_names(what: str, names: Collection[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise TypeError(f"{what} must be a set of names, got the string {names!r}")
    if not isinstance(names, Collection):
        raise TypeError(f"{what} must be a set of names, got {names!r}")
    for name in names:
        _check_word(f"{what}: a name", name)
    return frozenset(names)


def _check_primitives(what: str, names: Collection[str]) -> frozenset[str]:
    for name in _check_names(what, names):
        if name not in PRIMITIVES:
            raise ValueError(f"{what}: unknown primitive {name!r}{did_you_mean(name, PRIMITIVES)}")
    return frozenset(names)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every descriptor has. ``name`` is what a run file or a command line says."""

    kind: ClassVar[str]

    name: str
    target: str
    """Import string of the implementation."""
    summary: str = ""
    """One line for `fvd plugins list` and `--help`."""
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    """Checks of the conformance kit that this component is known to fail: check id -> reason. Strict: a check that is
    listed here and passes is a failure too."""

    def __post_init__(self) -> None:
        _check_text(f"{self.kind} name", self.name)
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.kind} name {self.name!r} must match [a-z][a-z0-9_]*")
        what = f"{self.kind} {self.name!r}"
        _check_target(f"{what}: target", self.target)
        _check_text(f"{what}: summary", self.summary)
        if self.summary.splitlines() not in ([], [self.summary]):
            raise ValueError(f"{what}: summary must be one line, got {self.summary!r}")
        _check_mapping(f"{what}: expected_failures", self.expected_failures)
        for check, reason in self.expected_failures.items():
            _check_text(f"{what}: expected_failures[{check!r}]", reason)


@dataclass(frozen=True, kw_only=True)
class Example:
    """What a family or a method contributes to the run files that `fvd plugins example` writes.

    A family says where its weights come from, and how large its runs are; a method says which keys it cannot do without, and
    how it learns. Any family's example and any method's make one run file together. Keys that are not given keep their
    defaults.
    """

    path: str = ""
    """Of a family: what stands under ``roles.<role>.path``, a hub id or a word that the family understands."""
    frozen_path: str = ""
    """Of a family: the same for frozen roles, where another model serves better. Default: ``path``."""
    training: Mapping[str, object] = field(default_factory=dict)
    """Values under ``training:``. A family's count more than a method's, for it knows what its networks need: it says a
    ``learning_rate`` only where no method's would do."""
    pipeline_config: Mapping[str, object] = field(default_factory=dict)
    """Values under ``pipeline_config:``. A method's count more than a family's."""
    method_config: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text("Example: path", self.path)
        _check_text("Example: frozen_path", self.frozen_path)
        _check_mapping("Example: training", self.training)
        _check_mapping("Example: pipeline_config", self.pipeline_config)
        _check_mapping("Example: method_config", self.method_config)


def _check_example(what: str, example: object) -> None:
    if not isinstance(example, Example):
        raise TypeError(f"{what}: example must be a fvd.Example, got {example!r}")


@dataclass(frozen=True, kw_only=True)
class FamilySpec(Spec):
    """A kind of model: how its folders are loaded and assembled. ``target`` is a `fvd.Family`."""

    kind: ClassVar[str] = "family"

    config: str = "fvd.config.models:PipelineConfig"
    """Import string of the `fvd.PipelineConfig` that parses ``pipeline_config:``; a module without torch. The default
    knows what every family does: ``flow_shift``, ``sampler_kind``, ``components_path``, ``negative_prompt``."""
    provides: Collection[str]
    """The primitives that this family's adapter implements; the conformance kit proves the claim."""
    samplers: Collection[str] = frozenset()
    """Kinds for which the adapter's ``scheduler(kind)`` returns one. A sampler of any name runs on every family that has
    the kind it asks for (`SamplerSpec.scheduler`)."""
    attn_kinds: Collection[str] = frozenset({"dense"})
    """Values of ``attn_kind`` that ``predict`` understands."""
    latent_space: str = ""
    """Families that name the same latent space may serve roles of one run. Empty: only with itself."""
    validator: str = "video"
    """Name of the validator that samples this family during training, where the run file names none."""
    export_formats: tuple[str, ...] = ("diffusers",)
    """What ``export`` writes; `fvd export` takes the first unless told otherwise."""
    dataset_kind: str = "parquet"
    """The kind of prepared data that `Family.data_spec` describes."""
    tiny: str = ""
    """Import string of a function ``(folder: pathlib.Path) -> None`` that writes a random model of a few thousand weights,
    whole (VAE and text encoder too), without a download: what the conformance kit and a first try run on. Empty:
    ``example.path`` is as small."""
    example: Example = Example()

    def __post_init__(self) -> None:
        super().__post_init__()
        what = f"family {self.name!r}"
        _check_target(f"{what}: config", self.config)
        if self.tiny != "":
            _check_target(f"{what}: tiny", self.tiny)
        object.__setattr__(self, "provides", _check_primitives(f"{what}: provides", self.provides))
        object.__setattr__(self, "samplers", _check_names(f"{what}: samplers", self.samplers))
        object.__setattr__(self, "attn_kinds", _check_names(f"{what}: attn_kinds", self.attn_kinds))
        _check_text(f"{what}: latent_space", self.latent_space)
        _check_word(f"{what}: validator", self.validator)
        _check_word(f"{what}: dataset_kind", self.dataset_kind)
        if not isinstance(self.export_formats, tuple) or not self.export_formats:
            raise TypeError(f"{what}: export_formats must be a tuple of at least one name, got {self.export_formats!r}")
        _check_names(f"{what}: export_formats", self.export_formats)
        _check_example(what, self.example)


@dataclass(frozen=True, kw_only=True)
class RoleNeeds:
    """What a method asks of one role: whether it is trained, and which primitives are called on it."""

    trainable: bool
    needs: Collection[str] = frozenset()
    """Of a role that the method makes: what it calls on the run's other roles for its sake."""
    optional: bool = False
    """A run file may leave the role out; its needs count where one names it."""
    made_by_method: bool = False
    """`Method.build_roles` makes it: it is no model of the family, and has no ``path``. Such a role is trained."""

    def __post_init__(self) -> None:
        _check_flag("RoleNeeds: trainable", self.trainable)
        _check_flag("RoleNeeds: optional", self.optional)
        _check_flag("RoleNeeds: made_by_method", self.made_by_method)
        if self.made_by_method and not self.trainable:
            raise ValueError("RoleNeeds: a role that the method makes is trained: it would stay random")
        object.__setattr__(self, "needs", _check_primitives("RoleNeeds: needs", self.needs))


@dataclass(frozen=True, kw_only=True)
class MovedKey:
    """An older spelling of a ``method_config`` key, accepted with a warning.

    ``to`` is today's key under ``method_config:``, or, with dots, one of a role: ``roles.critic.optimizer.learning_rate``,
    ``roles.student.ema``. ``values`` translates old values (``{True: "simulate"}``); a value it does not list passes unchanged.
    """

    to: str
    values: Mapping[object, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_word("MovedKey: to", self.to)
        if "." in self.to and not re.fullmatch(r"roles(\.\w+){2,}", self.to):
            raise ValueError(f"MovedKey: to must be a key of method_config or roles.ROLE.KEY, got {self.to!r}")
        if not isinstance(self.values, Mapping):
            raise TypeError(f"MovedKey: values must be a mapping, got {self.values!r}")


@dataclass(frozen=True, kw_only=True)
class MethodSpec(Spec):
    """A training algorithm. ``target`` is a `fvd.Method`."""

    kind: ClassVar[str] = "method"

    config: str = "fvd.config.models:MethodConfig"
    """Import string of the `fvd.MethodConfig` that parses ``method_config:``; a module without torch. The default has no
    keys."""
    roles: Mapping[str, RoleNeeds]
    """The roles that a run file names: all but the optional ones must be there."""
    needs: Collection[str] = frozenset({"prepare_batch"})
    """Primitives that the method calls on the adapter itself."""
    moved_keys: Mapping[str, MovedKey] = field(default_factory=dict)
    """Old keys, as they stand under ``training:`` or ``method_config:`` of existing files."""
    held_out_loss: bool = False
    """Whether it has a `Method.held_out_loss`: of a method without one, a run file may hold no samples out."""
    example: Example = Example()

    def __post_init__(self) -> None:
        super().__post_init__()
        what = f"method {self.name!r}"
        _check_target(f"{what}: config", self.config)
        object.__setattr__(self, "needs", _check_primitives(f"{what}: needs", self.needs))
        if not isinstance(self.roles, Mapping) or not self.roles:
            raise TypeError(f"{what}: roles must be a mapping of at least one role name to RoleNeeds")
        _check_mapping(f"{what}: roles", self.roles)
        for role, needs in self.roles.items():
            if not isinstance(needs, RoleNeeds):
                raise TypeError(f"{what}: roles[{role!r}] must be RoleNeeds, got {type(needs).__name__}")
        if all(needs.optional or needs.made_by_method for needs in self.roles.values()):
            raise ValueError(f"{what}: at least one of its roles must be a model that every run file names")
        _check_flag(f"{what}: held_out_loss", self.held_out_loss)
        _check_mapping(f"{what}: moved_keys", self.moved_keys)
        for key, moved in self.moved_keys.items():
            if not isinstance(moved, MovedKey):
                raise TypeError(f"{what}: moved_keys[{key!r}] must be a MovedKey, got {moved!r}")
        _check_example(what, self.example)

    @property
    def required_roles(self) -> tuple[str, ...]:
        """Those that every run file names."""
        return tuple(role for role, needs in self.roles.items() if not needs.optional)


@dataclass(frozen=True, kw_only=True)
class SamplerSpec(Spec):
    """A denoising loop. ``target`` is a function, see `fvd.samplers`."""

    kind: ClassVar[str] = "sampler"

    scheduler: str = "ode"
    """Which of the family's schedulers places the timesteps (and steps, where the loop uses it)."""
    takes_timesteps: bool = False
    """Whether the loop runs on any descending list of timesteps, such as the ladder of a few-step student."""
    few_step: bool = False
    """Made for few-step students, whose x0 is a sample; validation warns when another role is sampled with it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        what = f"sampler {self.name!r}"
        _check_word(f"{what}: scheduler", self.scheduler)
        _check_flag(f"{what}: takes_timesteps", self.takes_timesteps)
        _check_flag(f"{what}: few_step", self.few_step)


@dataclass(frozen=True, kw_only=True)
class ValidatorSpec(Spec):
    """What samples and logs during training. ``target`` is a class with the constructor of `fvd.validation.base.Validator`."""

    kind: ClassVar[str] = "validator"


@dataclass(frozen=True, kw_only=True)
class TrackerSpec(Spec):
    """Where metrics and media go. ``target`` is a function
    ``(context: fvd.trackers.base.TrackerContext) -> fvd.Tracker``."""

    kind: ClassVar[str] = "tracker"


@dataclass(frozen=True, kw_only=True)
class DatasetKindSpec(Spec):
    """A format of prepared data. ``target`` is a function ``(sources, spec, *, needs_latents)`` that returns a
    `fvd.data.dataset.ChunkedDataset`; sources are (folder, repeats)."""

    kind: ClassVar[str] = "dataset_kind"

    reads_folders: bool = True
    """Whether it reads the folders of ``training.data_path``; False where it makes its data, and the run file names none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_flag(f"dataset kind {self.name!r}: reads_folders", self.reads_folders)


@dataclass(frozen=True, kw_only=True)
class CommandSpec(Spec):
    """A subcommand `fvd NAME`. ``target`` is a function ``(parser: argparse.ArgumentParser) -> None`` that adds the
    arguments and calls ``parser.set_defaults(execute=function)``, where ``function(args) -> int`` is the exit status.
    Heavy imports belong inside that function."""

    kind: ClassVar[str] = "command"
