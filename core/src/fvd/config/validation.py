"""What a run file says of validation: what cannot be, and what does nothing. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fvd.config.check import CheckContext
from fvd.config.models import TrainingConfig
from fvd.errors import Problem


def check_validation(ctx: CheckContext) -> Iterator[Problem]:
    """Every finding about ``training.validation_…`` that needs no look at other plugins."""
    yield from _prompts(ctx)
    yield from _weights(ctx)
    yield from _idle(ctx)


def idle_validation_keys(training: TrainingConfig) -> Mapping[str, str]:
    """Keys of ``training:`` that do nothing in this run, whatever their value, and why."""
    idle: dict[str, str] = {}
    if not training.log_validation:
        idle |= dict.fromkeys(("validation_dataset_file", "validator", "validation_fps"), "log_validation is false")
    if not training.computes_held_out_loss:
        idle["validation_samples"] = "no samples are held out"
        if not training.log_validation:
            idle |= dict.fromkeys(("validation_steps", "validation_weights"), "nothing is validated")
    return idle


def _prompts(ctx: CheckContext) -> Iterator[Problem]:
    training = ctx.run.training
    if not training.log_validation:
        return
    if training.validation_dataset_file is None:
        cure = "Name a json, jsonl, csv or txt file of prompts, or write log_validation: false."
        yield ctx.problem("training.log_validation", "validation needs training.validation_dataset_file", cure=cure)
        return
    path, key = Path(training.validation_dataset_file).expanduser(), "training.validation_dataset_file"
    if not path.exists():
        yield ctx.problem(key, f"there is no file {path} here", cure="`fvd run` needs it.", severity="warning")


def _weights(ctx: CheckContext) -> Iterator[Problem]:
    """Averages are asked for, and there are none. Which role is sampled, a method's class says; the first one, as a rule."""
    training, key = ctx.run.training, "training.validation_weights"
    if training.validation_weights != "ema" or not (training.log_validation or training.computes_held_out_loss):
        return
    trained = [name for name in ctx.method.roles if name in ctx.run.roles and ctx.method.roles[name].trainable]
    averaged = [name for name in trained if ctx.run.ema_of(name)]
    if not trained or trained[0] in averaged:
        return
    cure = f"Give it one, `roles.{trained[0]}.ema: {{decay: 0.999}}`, or remove the key: both is raw where there is no average."
    message = f"no average is kept of the {trained[0]}"
    if averaged:
        message += f", only of {', '.join(averaged)}: where the {trained[0]} is what is validated, there is nothing to show"
    yield ctx.problem(key, message, cure=cure, severity="warning" if averaged else "error")


def _idle(ctx: CheckContext) -> Iterator[Problem]:
    """Of the keys that the run file sets to something else than their default."""
    training = ctx.run.training
    for key, reason in idle_validation_keys(training).items():
        if key in training.model_fields_set and getattr(training, key) != TrainingConfig.model_fields[key].default:
            yield ctx.problem(f"training.{key}", f"has no effect: {reason}", severity="note")
