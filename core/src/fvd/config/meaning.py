"""What a run file comes to, key by key: the value, where it comes from, and what it means in this run. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from fvd.accounting import describe_passes, forward_equivalents
from fvd.config.document import keys_of, yaml_text
from fvd.config.load import LoadedRun
from fvd.config.models import RoleConfig, RunConfig
from fvd.config.optimization import IN_TRAINING, EmaConfig, OptimizerConfig, OptimizerSettings, given, takes_setting
from fvd.config.validation import idle_validation_keys
from fvd.config.yaml_lines import KeyPath

DEFAULT = "default"


@dataclass(frozen=True)
class Knob:
    """One key of a run. key: dotted, as in the run file. value: plain data. source: ``line 7`` of the run file, ``--set``,
    ``preset NAME``, ``default``. meaning: a sentence, or empty where the value says it."""

    key: str
    value: object
    source: str
    meaning: str

    @property
    def value_text(self) -> str:
        return yaml_text(self.value)


@dataclass(frozen=True)
class Explanation:
    """headlines: what one wants to know first. sections: every key of the run, by the section of the run file."""

    headlines: Mapping[str, str]
    sections: Mapping[str, list[Knob]]

    def as_dict(self) -> dict[str, object]:
        sections = {name: [asdict(knob) for knob in knobs] for name, knobs in self.sections.items()}
        return {"headlines": dict(self.headlines), "sections": sections}


def explain_run(loaded: LoadedRun) -> Explanation:
    """Raises ConfigError where the run file has errors."""
    run = loaded.require()
    sources = _Sources(loaded, run)
    sections = {
        "training": _knobs("training", run.training, sources, _training_meanings(run, sources)),
        **{f"roles.{name}": list(_role_knobs(name, role, run, sources)) for name, role in run.roles.items()},
        "pipeline_config": _knobs("pipeline_config", run.pipeline_config, sources, {}),
        "method_config": _knobs("method_config", run.method_config, sources, run.method_config.meanings(run)),
    }
    return Explanation(_headlines(run) | dict(run.method_config.headlines(run)), sections)


class _Sources:
    """Where values come from."""

    def __init__(self, loaded: LoadedRun, run: RunConfig) -> None:
        self.document = loaded.document
        self.file = str(loaded.path)
        self.method = run.recipe.method
        self.of_method = run.method_config.sources()
        self.of_ladder = (
            set()
            if run.method_config.sampling_ladder() is None
            else {"training.validation_sampling_steps", "training.validation_guidance_scale", "pipeline_config.sampler_kind"}
        )

    def of(self, key: KeyPath) -> str:
        """Of a key of ``training:``, ``pipeline_config:`` or ``method_config:``."""
        if ".".join(key) in self.of_ladder:
            return f"ladder of {self.method}"
        if self.says(key):
            return self.place(key)
        return self.of_method.get(".".join(key[1:]), DEFAULT) if key[0] == "method_config" else DEFAULT

    def of_optimizer(self, role: str, setting: str, run: RunConfig) -> str:
        """The four places of `fvd.config.optimization`, in their order."""
        own, for_all = ("roles", role, "optimizer", setting), ("training", IN_TRAINING[setting])
        if self.value(own) is not None:
            return self.place(own)
        if self.follows_training(role, setting, run):
            return f"{self.place(for_all)}, training" if self.says(for_all) else DEFAULT
        return self.of_role(role)

    def follows_training(self, role: str, setting: str, run: RunConfig) -> bool:
        """Whether a key of a role's optimizer is what ``training:`` says, or its default."""
        if self.value(("roles", role, "optimizer", setting)) is not None:
            return False
        is_said = self.says(("training", IN_TRAINING[setting]))
        return is_said or setting not in given(run.method_config.role_defaults(role).optimizer)

    def of_ema(self, role: str, setting: str, defaults: EmaConfig | None) -> str:
        own = ("roles", role, "ema", setting)
        if self.value(own) is not None:
            return self.place(own)
        return self.of_role(role) if defaults and setting in given(defaults) else DEFAULT

    def of_role(self, role: str) -> str:
        """What the method says of a role."""
        return self.of_method.get(f"roles.{role}", f"default of {self.method}")

    def place(self, key: KeyPath) -> str:
        file, line = self.document.locate(key, self.file)
        if file.startswith("--set "):
            return "--set"
        return f"line {line}" if file == self.file else f"{Path(file).name}:{line}"

    def says(self, key: KeyPath) -> bool:
        """Whether the run file, or ``--set``, has this very key."""
        section = self.value(key[:-1])
        return isinstance(section, dict) and key[-1] in section

    def value(self, key: KeyPath) -> object:
        """What the run file has at ``key``; None where it has nothing."""
        found: object = self.document.data
        for part in key:
            found = found.get(part) if isinstance(found, dict) else None
        return found


def _knobs(prefix: str, model: BaseModel, sources: _Sources, meanings: Mapping[str, str]) -> list[Knob]:
    return list(_knobs_below(tuple(prefix.split(".")), model, sources, meanings, depth=1))


def _knobs_below(
    path: KeyPath, model: BaseModel, sources: _Sources, meanings: Mapping[str, str], *, depth: int
) -> Iterator[Knob]:
    """The keys of ``model``, and those of models inside it. ``meanings`` has the keys from ``depth`` on."""
    descriptions = {key.name: key.first_sentence for key in keys_of(type(model))}
    for name in type(model).model_fields:
        value, key = getattr(model, name), (*path, name)
        if isinstance(value, BaseModel):
            yield from _knobs_below(key, value, sources, meanings, depth=depth)
        else:
            meaning = meanings.get(".".join(key[depth:]), descriptions[name])
            yield Knob(".".join(key), to_jsonable_python(value), sources.of(key), meaning)


# --- roles ---
def _role_knobs(name: str, role: RoleConfig, run: RunConfig, sources: _Sources) -> Iterator[Knob]:
    def knob(key: str, value: object, source: str, meaning: str) -> Knob:
        return Knob(f"roles.{name}.{key}", to_jsonable_python(value), source, meaning)

    def own(key: str, otherwise: str) -> str:
        return sources.place(("roles", name, key)) if sources.says(("roles", name, key)) else otherwise

    method, verb = sources.method, "trained" if role.trainable else "frozen"
    if role.path:
        yield knob("family", role.family, own("family", "recipe.family"), "")
        yield knob("path", role.path, own("path", DEFAULT), "")
    else:
        verb = f"made and {verb}"
    yield knob("trainable", role.trainable, own("trainable", f"method {method}"), f"{verb} by {method}")
    if not role.trainable:
        return
    settings, defaults = run.optimizer_of(name), run.method_config.role_defaults(name).ema
    for setting, meaning in _optimizer_meanings(name, settings).items():
        value = vars(settings)[setting] if takes_setting(settings.name, setting) else None
        source = sources.of_optimizer(name, setting, run)
        yield knob(f"optimizer.{setting}", value, source, meaning)
    ema = run.ema_of(name)
    if ema is None:
        yield knob("ema", False, own("ema", DEFAULT), "no average of the weights is kept")
        return
    law = f"average = {ema.decay:g} average + {1 - ema.decay:.3g} weights at each update of the {name}"
    start = f"until update {ema.start_step} of the {name} the average is the weights" if ema.start_step else "from the first"
    for setting, meaning in (("decay", law), ("start_step", start)):
        yield knob(f"ema.{setting}", vars(ema)[setting], sources.of_ema(name, setting, defaults), meaning)


def _optimizer_meanings(role: str, settings: OptimizerSettings) -> dict[str, str]:
    meanings = dict.fromkeys(OptimizerConfig.model_fields, "")
    for setting in meanings:
        if not takes_setting(settings.name, setting):
            meanings[setting] = f"no effect: {settings.name} has none"
    schedule = settings.lr_scheduler
    meanings["learning_rate"] = "of every update" if schedule == "constant" else "the highest"
    meanings["lr_scheduler"] = f"counts the updates of the {role}"
    norm = settings.max_grad_norm
    meanings["max_grad_norm"] = f"a larger gradient of the {role} is scaled to this norm" if norm else "no clipping"
    warmup = settings.lr_warmup_steps
    meanings["lr_warmup_steps"] = f"the rate rises over the first {warmup} updates of the {role}" if warmup else "no warm-up"
    if schedule != "cosine_with_restarts":
        meanings["lr_num_cycles"] = f"no effect with {schedule}"
    if schedule != "polynomial":
        meanings["lr_power"] = f"no effect with {schedule}"
    if schedule.startswith("constant"):
        meanings["min_lr_ratio"] = f"no effect with {schedule}"
    return meanings


# --- what core can say of the rest ---
def _training_meanings(run: RunConfig, sources: _Sources) -> dict[str, str]:
    training = run.training
    batch, micro_batches = training.train_batch_size, training.gradient_accumulation_steps
    meanings = {
        "max_train_steps": f"{_count(training.max_train_steps * batch * micro_batches, 'sample')} in all",
        "gradient_accumulation_steps": f"{micro_batches} x {batch} = {_count(micro_batches * batch, 'sample')} a step",
        **_optimization_meanings(run, sources),
    }
    return meanings | {key: f"no effect: {reason}" for key, reason in idle_validation_keys(training).items()}


def _optimization_meanings(run: RunConfig, sources: _Sources) -> dict[str, str]:
    """Of the keys of ``training:`` that count for each role that has none of its own."""
    trained = [name for name, role in run.roles.items() if role.trainable]
    meanings = {}
    for setting, key in IN_TRAINING.items():
        following = [name for name in trained if sources.follows_training(name, setting, run)]
        meanings[key] = f"for {', '.join(following)}" if following else "no effect: every trained role has its own"
    return meanings


def _headlines(run: RunConfig) -> dict[str, str]:
    training, recipe = run.training, run.recipe
    samples = training.train_batch_size * training.gradient_accumulation_steps
    trained = [name for name, role in run.roles.items() if role.trainable]
    frozen = [name for name in run.roles if name not in trained]
    lines = {
        "run": f"{recipe.method} on {recipe.family}: {_count(training.max_train_steps, 'step')} of {_count(samples, 'sample')}",
        "roles": f"trained: {', '.join(trained)}" + (f"; frozen: {', '.join(frozen)}" if frozen else ""),
        "sampled": _how_sampled(run),
    }
    passes = run.method_config.expected_passes(run)
    if passes is not None:
        each = "a micro-batch" if training.gradient_accumulation_steps > 1 else "a step"
        total = f"{round(forward_equivalents(passes), 2):g} forward equivalents {each} (a backward is 2)"
        lines["cost"] = f"{total}: {describe_passes(passes)}"
    return lines


def _how_sampled(run: RunConfig) -> str:
    ladder, training = run.method_config.sampling_ladder(), run.training
    if ladder is None:
        kind = run.pipeline_config.sampler_kind or "ode"
        steps = " or ".join(map(str, training.validation_sampling_steps))
        return f"by {kind} in {steps} steps, guidance {_guidance(training.validation_guidance_scale)}"
    timesteps = ", ".join(f"{step:g}" for step in ladder.timesteps)
    shift = run.pipeline_config.flow_shift
    shifted = f" before the flow shift of {shift:g}" if ladder.shift_timesteps and shift != 1 else ""
    steps = _count(len(ladder.timesteps), "step")
    return f"by {ladder.sampler_kind} in {steps}, at {timesteps}{shifted}, guidance {_guidance(ladder.guidance_scale)}"


def _guidance(scale: float) -> str:
    return f"{scale:g}{' (none)' if scale == 1 else ''}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
