"""Which optimizers there are and what they take, as far as it can be said without torch; and what a run file says of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from types import MappingProxyType

from fvd.config.check import CheckContext
from fvd.config.document import yaml_text
from fvd.config.models import RoleConfig
from fvd.config.optimization import ARGUMENT_KINDS, IN_TRAINING, KNOWN_OPTIMIZERS, MAY_BE_NULL, SETTINGS, is_of_kind
from fvd.errors import Problem, did_you_mean

REFUSED_OPTIMIZERS: Mapping[str, str] = MappingProxyType(
    {
        "LBFGS": "it computes the loss several times a step, and a training step draws its noise once",
        "SparseAdam": "it is for sparse gradients, and those of video models are dense",
    }
)
"""Classes of torch.optim that cannot train here, and why."""

REFUSED_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {"differentiable": "its steps are differentiated, and those of weights that are trained cannot be"}
)
"""Arguments that cannot be true here, and why."""

MATRICES_ONLY = frozenset({"Muon"})
"""Optimizers of two-dimensional parameters alone."""

EIGHT_BIT_LIBRARY = "bitsandbytes"
EIGHT_BIT_INSTALL = "Install it with `pip install 'fvd-core[8bit]'`."


def is_eight_bit(name: str) -> bool:
    """Whether this is an optimizer of the extra ``8bit``."""
    return name.endswith("8bit")


def check_optimization(ctx: CheckContext) -> Iterator[Problem]:
    """Every finding about ``roles.<role>.optimizer``, ``roles.<role>.ema`` and their keys under ``training:``."""
    known = {name: role for name, role in ctx.run.roles.items() if name in ctx.method.roles}
    trained = {name: role for name, role in known.items() if ctx.method.roles[name].trainable}
    for name, role in known.items():
        if name in trained:
            continue
        for key, is_given in (("optimizer", role.optimizer is not None), ("ema", role.ema not in (None, False))):
            if is_given:
                yield ctx.problem(f"roles.{name}.{key}", f"the {name} is frozen: its weights do not move", cure="Remove it.")
    for key in dict.fromkeys(_name_key(ctx, name) for name in trained):
        who = next(name for name in trained if _name_key(ctx, name) == key)
        yield from _check_name(ctx, key, ctx.run.optimizer_of(who).name)
    for name, role in trained.items():
        yield from _check_settings(ctx, name, role)
    yield from _check_settings_for_all(ctx, trained)
    yield from _check_arguments_for_all(ctx, trained)


def _name_key(ctx: CheckContext, role: str) -> str:
    """Where the class of the role's optimizer is said."""
    own = ctx.run.roles[role].optimizer
    if own is not None and own.name is not None:
        return f"roles.{role}.optimizer.name"
    return "training.optimizer" if "optimizer" in ctx.run.training.model_fields_set else f"roles.{role}"


def _check_name(ctx: CheckContext, key: str, name: str) -> Iterator[Problem]:
    if name in REFUSED_OPTIMIZERS:
        yield ctx.problem(key, f"the optimizer {name} cannot train here: {REFUSED_OPTIMIZERS[name]}", cure="Use AdamW.")
    elif name not in KNOWN_OPTIMIZERS:
        message = f"this version knows no optimizer {name!r}{did_you_mean(name, KNOWN_OPTIMIZERS)}"
        cure = f"`fvd run` looks for it in the installed torch.optim. Known: {', '.join(KNOWN_OPTIMIZERS)}."
        yield ctx.problem(key, message, cure=cure, severity="warning")
    elif is_eight_bit(name) and find_spec(EIGHT_BIT_LIBRARY) is None:
        message = f"the optimizer {name} is of the library {EIGHT_BIT_LIBRARY}, which is not installed here"
        yield ctx.problem(key, message, cure=EIGHT_BIT_INSTALL, severity="warning")
    elif name in MATRICES_ONLY:
        message = f"{name} takes two-dimensional parameters alone, and a transformer has others: biases, norms, convolutions"
        cure = "`fvd run` refuses it where a trained role has any of these. Use AdamW."
        yield ctx.problem(key, message, cure=cure, severity="warning")


def _check_settings(ctx: CheckContext, name: str, role: RoleConfig) -> Iterator[Problem]:
    """What the file says of this role, and its optimizer does not take."""
    chosen = ctx.run.optimizer_of(name)
    takes = KNOWN_OPTIMIZERS.get(chosen.name)
    if takes is None:
        return
    if role.optimizer is not None:
        for setting, argument in SETTINGS.items():
            if getattr(role.optimizer, setting) is not None and argument not in takes:
                yield _not_taken(ctx, f"roles.{name}.optimizer.{setting}", chosen.name, takes)
        if role.optimizer.arguments is not None:
            key = f"roles.{name}.optimizer.arguments"
            for argument, value in role.optimizer.arguments.items():
                own_key = {argument: f"roles.{name}.optimizer.{setting}" for setting, argument in SETTINGS.items()}
                yield from _check_argument(ctx, f"{key}.{argument}", argument, value, chosen.name, own_key)


def _check_arguments_for_all(ctx: CheckContext, trained: Mapping[str, RoleConfig]) -> Iterator[Problem]:
    """``training.optimizer_arguments``, which every role is given that has none of its own."""
    asking = [name for name, role in trained.items() if role.optimizer is None or role.optimizer.arguments is None]
    own_key = {argument: f"training.{IN_TRAINING[setting]}" for setting, argument in SETTINGS.items()}
    for argument, value in ctx.run.training.optimizer_arguments.items():
        key = f"training.optimizer_arguments.{argument}"
        for optimizer in dict.fromkeys(ctx.run.optimizer_of(name).name for name in asking):
            problems = list(_check_argument(ctx, key, argument, value, optimizer, own_key))
            yield from problems
            if problems:  # of one key one
                break


def _check_argument(
    ctx: CheckContext, key: str, argument: str, value: object, optimizer: str, own_key: Mapping[str, str]
) -> Iterator[Problem]:
    """``own_key``: where the settings among the arguments are said."""
    takes = KNOWN_OPTIMIZERS.get(optimizer)
    if takes is None:
        return
    kind = ARGUMENT_KINDS.get(argument)
    if argument in takes and argument in own_key:
        yield ctx.problem(key, f"{argument} has a key of its own", cure=f"Write {own_key[argument]}.")
    elif argument not in takes and not (argument == "eps" and optimizer == "Adafactor"):
        yield _not_taken(ctx, key, optimizer, takes)
    elif value is True and argument in REFUSED_ARGUMENTS:
        yield ctx.problem(key, f"cannot be true: {REFUSED_ARGUMENTS[argument]}", cure="Remove it.")
    elif kind and not is_of_kind(value, kind) and not (value is None and argument in MAY_BE_NULL):
        yield ctx.problem(key, f"{argument} of {optimizer} must be {kind}, got {yaml_text(value)}")


def _check_settings_for_all(ctx: CheckContext, trained: Mapping[str, RoleConfig]) -> Iterator[Problem]:
    """What the file says for every role, and no role's optimizer takes. A role that says the key itself, if only ``null``,
    does not ask for training's."""
    for setting, argument in SETTINGS.items():
        key = IN_TRAINING[setting]
        asking = [
            name for name, role in trained.items() if role.optimizer is None or setting not in role.optimizer.model_fields_set
        ]
        if key not in ctx.run.training.model_fields_set or not asking:
            continue
        names = list(dict.fromkeys(ctx.run.optimizer_of(name).name for name in asking))
        tables = [KNOWN_OPTIMIZERS.get(name) for name in names]
        if all(takes is not None and argument not in takes for takes in tables):
            yield _not_taken(ctx, f"training.{key}", ", ".join(names), tables[0] or ())


def _not_taken(ctx: CheckContext, key: str, optimizer: str, takes: Collection[str]) -> Problem:
    word = key.rpartition(".")[2]
    message = f"the optimizer {optimizer} takes no {word}{did_you_mean(word, takes)}"
    return ctx.problem(key, message, cure=f"Remove it. {optimizer} takes: {', '.join(sorted(takes))}.")
