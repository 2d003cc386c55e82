"""What a run file makes of the roles' own clocks: a role that never moves, a warm-up without an end. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

from fvd.config.check import CheckContext
from fvd.config.optimization import IN_TRAINING
from fvd.errors import Problem

_CONSTANT = {"cosine_with_restarts": ("lr_num_cycles", "it needs 1 or more"), "polynomial": ("lr_power", "1 is linear")}
"""Schedules that do not decay where one of their settings is 0."""


def check_schedules(ctx: CheckContext) -> Iterator[Problem]:
    """Warnings of trained roles, one a key."""
    found: dict[tuple[str, str], Problem] = {}
    for role, needs in ctx.method.roles.items():
        if needs.trainable and role in ctx.run.roles:
            for problem in _of_role(ctx, role):
                found.setdefault((problem.key, problem.message), problem)
    yield from found.values()


def _of_role(ctx: CheckContext, role: str) -> Iterator[Problem]:
    settings, steps = ctx.run.optimizer_of(role), ctx.run.training.max_train_steps
    updates = ctx.run.method_config.role_updates(ctx.run, role)
    if steps and not updates:
        message = f"the {role} never moves: it has 0 updates in {_count(steps, 'step')} of the method {ctx.method.name}"
        cure = "Make the run longer, or let the role move more often."
        yield ctx.problem("training.max_train_steps", message, cure=cure, severity="warning")
    elif steps and settings.lr_warmup_steps >= updates:
        moves = _count(updates, "update")
        message = f"the {role} never leaves its warm-up of {settings.lr_warmup_steps}: it has {moves} in this run"
        cure = "Warm up over fewer updates of the role, or make the run longer."
        yield ctx.problem(_key(ctx, role, "lr_warmup_steps"), message, cure=cure, severity="warning")
    setting, cure = _CONSTANT.get(settings.lr_scheduler, ("", ""))
    if setting and vars(settings)[setting] == 0:
        message = f"0 makes {settings.lr_scheduler} a constant learning rate"
        cure = f"Use lr_scheduler: constant, or another number: {cure}."
        yield ctx.problem(_key(ctx, role, setting), message, cure=cure, severity="warning")


def _key(ctx: CheckContext, role: str, setting: str) -> str:
    """Where a setting of the role's optimizer is said."""
    own = ctx.run.roles[role].optimizer
    if own is not None and setting in own.model_fields_set and getattr(own, setting) is not None:
        return f"roles.{role}.optimizer.{setting}"
    return f"training.{IN_TRAINING[setting]}" if IN_TRAINING[setting] in ctx.run.training.model_fields_set else f"roles.{role}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
