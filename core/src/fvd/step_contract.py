"""What a method must keep to in a step. Checked at every yield: it costs no sync, and a slip trains on nonsense."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from fvd.data.spec import RawBatch
from fvd.errors import PluginError, mistake_in_code
from fvd.methods import Loss, Method
from fvd.metrics import Deviation, MetricValue, WeightedMean
from fvd.rng import StepRandom
from fvd.specs import MethodSpec


def check_role_names(method: type[Method], spec: MethodSpec) -> None:
    """Raise PluginError where a method's class and its descriptor, by which run files are checked, name different roles."""
    optional = set(spec.roles) - set(spec.required_roles)
    for attribute, named, wanted in (
        ("role_names", method.role_names, set(spec.required_roles)),
        ("optional_role_names", method.optional_role_names, optional),
    ):
        if set(named) != wanted:
            kind = "optional roles" if wanted is optional else "roles"
            raise _error(
                _title(spec.name, method), f"its {attribute} {sorted(named)} are not the descriptor's {kind} {sorted(wanted)}"
            )


def check_method(method: Method, spec: MethodSpec) -> None:
    """Raise PluginError where a built method is not what its descriptor says, or has a trained role without optimizer."""
    check_role_names(type(method), spec)
    has_held_out_loss = type(method).held_out_loss is not Method.held_out_loss
    if has_held_out_loss != spec.held_out_loss:
        has = "a" if has_held_out_loss else "no"
        raise _broken(method, f"it has {has} held_out_loss, and its descriptor says held_out_loss={spec.held_out_loss}")
    for handle in method.roles.trainable:
        if not handle.optimizers:
            raise _broken(method, f"it has built no optimizer for the trained role {handle.name!r}")


def checked_losses(method: Method, batch: RawBatch, iteration: int, rng: StepRandom) -> Iterator[Loss]:
    """The losses of a micro-batch, each as the contract of `fvd.Loss` wants it. Raises PluginError that names the slip."""
    step = method.single_train_step(batch, iteration, rng=rng)
    if not isinstance(step, Iterator):
        raise _broken(method, f"single_train_step must yield its losses, it returned {type(step).__name__}")
    names: set[str] = set()
    try:
        for loss in step:
            _check_loss(method, loss)
            given = {loss.name, *loss.metrics, *loss.counts}
            if names & given or len(given) != 1 + len(loss.metrics) + len(loss.counts):
                raise _broken(method, f"two of its losses and metrics have one name, among {sorted(given)}")
            names |= given
            yield loss
    finally:
        if isinstance(step, Generator):
            step.close()  # leaves the `with` block that it may have yielded in
    if not names:
        raise _broken(method, f"it yielded no loss at iteration {iteration}")


def checked_roles_to_update(method: Method, iteration: int) -> Sequence[str]:
    """The roles due, each a trained role of the run."""
    due = method.roles_to_update(iteration)
    trained = [handle.name for handle in method.roles.trainable]
    if isinstance(due, str) or not set(due) <= set(trained) or len(set(due)) < len(due):
        raise _broken(method, f"roles_to_update({iteration}) must be a list out of {trained}, each once, got {due!r}")
    return due


def _check_loss(method: Method, loss: object) -> None:
    if not isinstance(loss, Loss):
        raise _broken(method, f"single_train_step must yield fvd.Loss, it yielded {type(loss).__name__}")
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise PluginError(
            f"{_name(method)} yielded its loss {loss.name!r} inside a `with torch.no_grad()` or `with torch.autocast()` block",
            cure="Compute inside the block and yield after it: the trainer backpropagates between two yields.",
        )
    value = loss.value
    if not isinstance(value, Tensor) or value.ndim != 0 or value.dtype != torch.float32:
        got = f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise _broken(method, f"the loss {loss.name!r} must be one float32 number (a 0-dim tensor), got {got}")
    if not value.requires_grad:
        raise _broken(method, f"the loss {loss.name!r} reaches no parameter: it was detached, or computed without gradients")
    if loss.role not in [handle.name for handle in method.roles.trainable]:
        raise _broken(method, f"the loss {loss.name!r} is for the role {loss.role!r}, which is not a trained role of the run")
    for name, metric in loss.metrics.items():
        for number in _numbers(metric):
            _check_number(method, f"metric {name!r}", number)
    for name, count in loss.counts.items():
        _check_number(method, f"count {name!r}", count)


def _numbers(metric: MetricValue) -> Sequence[object]:
    match metric:
        case Deviation():
            return metric.total, metric.squares, metric.weight
        case WeightedMean():
            return metric.total, metric.weight
        case _:
            return (metric,)


def _check_number(method: Method, what: str, value: object) -> None:
    """A graph in a metric would be kept until it is logged, with all that hangs on it."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise _broken(method, f"the {what} carries a graph: give value.detach()")
        if value.ndim != 0:
            raise _broken(method, f"the {what} must be one number (a 0-dim tensor), got {list(value.shape)}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _broken(method, f"the {what} must be a number or a 0-dim tensor, got {type(value).__name__}")


def _title(name: str, method: type[Method]) -> str:
    return f"the method {name} ({method.__module__}.{method.__name__})"


def _name(method: Method) -> str:
    return _title(method.run.recipe.method, type(method))


def _broken(method: Method, what: str) -> PluginError:
    return _error(_name(method), what)


def _error(title: str, what: str) -> PluginError:
    return PluginError(f"{title} breaks its contract: {what}", cure=mistake_in_code("the method's"))
