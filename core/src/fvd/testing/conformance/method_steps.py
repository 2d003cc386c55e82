"""B202 to B207, B210: a method's steps, on toy families whose every number is known."""

from __future__ import annotations

import torch
from torch import Tensor

from fvd.data.spec import RawBatch
from fvd.rng import StepRandom
from fvd.specs import MethodSpec
from fvd.testing.conformance.asserts import (
    global_random_state_untouched,
    listed,
    require,
    require_close,
    require_equal,
    same_state,
    state_of,
)
from fvd.testing.conformance.family_build import select
from fvd.testing.conformance.method_build import (
    BuiltMethod,
    MethodBench,
    forget_gradients,
    losses_of,
    on_every_toy,
    steps_until_all_moved,
    train_step,
)
from fvd.testing.conformance.recording import RecordingAdapter
from fvd.testing.steps import step_random


@on_every_toy
def steps_are_finite(bench: MethodBench) -> None:
    """B202: as many steps as it takes until every trained role has moved."""
    built = bench.build()
    raw = bench.raw_batch()
    before = {handle.name: state_of(handle.modules.values()) for handle in built.trained}
    for iteration in range(1, steps_until_all_moved(built) + 1):
        for name, value in train_step(built, raw, iteration).items():
            require(bool(torch.isfinite(value)), f"the loss {name!r} of iteration {iteration} is {float(value)}")
    for handle in built.trained:
        after = state_of(handle.modules.values())
        require(all(bool(torch.isfinite(tensor).all()) for tensor in after), f"the weights of {handle.name} are not finite")
        require(not same_state(before[handle.name], after), f"{handle.name} was due, and its weights have not moved")


@on_every_toy
def calls_what_it_declares(bench: MethodBench) -> str | None:
    """B203: `needs` of the descriptor decides with which families a method runs, so it must be true."""
    recorders: list[RecordingAdapter] = []

    def wrap(adapter: object) -> RecordingAdapter:
        recorders.append(RecordingAdapter(adapter))  # type: ignore[arg-type]
        return recorders[-1]

    built = bench.build(wrap)
    raw = bench.raw_batch()
    for iteration in range(1, steps_until_all_moved(built) + 1):
        train_step(built, raw, iteration)
    spec, calls = bench.spec, recorders[0].calls
    undeclared = {f"{name} ({role})" if role else name for role, name in calls if name not in _allowed(spec, role)}
    require(not undeclared, f"it calls {listed(undeclared)}, which its descriptor does not declare under `needs`")
    used = {name for _, name in calls}
    declared = set(spec.needs).union(*(spec.roles[role].needs for role in spec.required_roles))
    unused = declared - used
    return f"declared and not used here: {listed(unused)}" if unused else None


def _allowed(spec: MethodSpec, role: str) -> frozenset[str]:
    """What may be called on a role. On the adapter itself, and on a handle that the method has made (an average of a
    role's weights), what any role needs counts: all are of one family. What is needed for the sake of a role that the method
    makes may be called on all."""
    named = [
        needs for name, needs in spec.roles.items() if role in (name, "") or role not in spec.roles or needs.made_by_method
    ]
    return frozenset(spec.needs).union(*(needs.needs for needs in named))


@on_every_toy
def gradients(bench: MethodBench) -> None:
    """B204: a loss reaches the parameters of its own role; frozen roles stay as they are, to the bit."""
    built = bench.build()
    raw = bench.raw_batch()
    frozen = {handle.name: state_of(handle.modules.values()) for handle in built.frozen}
    for iteration in range(1, steps_until_all_moved(built) + 1):
        for loss in losses_of(built, raw, iteration):
            forget_gradients(built)
            built.adapter.backward(loss.value, loss.ctx)
            reached = _roles_with_gradients(built)
            require(loss.role in reached, f"the loss {loss.name!r} is for {loss.role}, and no gradient reaches it")
            others = reached - {loss.role}
            require(not others, f"the loss {loss.name!r} is for {loss.role}, and its gradient reaches {listed(others)} too")
        forget_gradients(built)
        train_step(built, raw, iteration)
    for handle in built.frozen:
        require(same_state(frozen[handle.name], state_of(handle.modules.values())), f"{handle.name} is frozen, and has changed")
        learns = any(parameter.requires_grad for module in handle.modules.values() for parameter in module.parameters())
        require(not learns, f"{handle.name} is frozen, and its parameters require gradients")
    for handle in built.roles:
        training = any(part.training for module in handle.modules.values() for part in module.modules())
        require(not training, f"the modules of {handle.name} must stay in eval mode")


def _roles_with_gradients(built: BuiltMethod) -> set[str]:
    return {
        handle.name
        for handle in built.roles
        for module in handle.modules.values()
        for parameter in module.parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


@on_every_toy
def same_seed(bench: MethodBench) -> None:
    """B205: two methods built anew agree to the bit, and the generators given do matter."""
    raw = bench.raw_batch()
    first, second, third = (bench.build() for _ in range(3))
    seeds_matter = False
    for iteration in range(1, steps_until_all_moved(first) + 1):
        other = {
            loss.name: loss.value.detach() for loss in losses_of(third, raw, iteration, step_random(iteration, 2, seed=99))
        }
        one, again = train_step(first, raw, iteration), train_step(second, raw, iteration)
        train_step(third, raw, iteration)
        require(one.keys() == again.keys(), f"the same step yields the losses {listed(one)} once and {listed(again)} then")
        for name, value in one.items():
            require_equal(again[name], value, f"the loss {name!r} of iteration {iteration} must be the same for the same seed")
        seeds_matter |= any(not torch.equal(value, one.get(name, value)) for name, value in other.items())
    require(seeds_matter, "another seed gives the same losses: draw from the generators in `rng`")


@on_every_toy
def global_random_state(bench: MethodBench) -> None:
    """B206: neither drawn from nor set; and what it is makes no difference."""
    raw = bench.raw_batch()
    losses: list[dict[str, Tensor]] = []
    for seed in (1, 2):
        built = bench.build()
        torch.manual_seed(seed)
        for iteration in range(1, steps_until_all_moved(built) + 1):
            with global_random_state_untouched("a step"):
                losses.append(train_step(built, raw, iteration))
    half = len(losses) // 2
    for one, other in zip(losses[:half], losses[half:], strict=True):
        for name, value in one.items():
            require_equal(other[name], value, f"the loss {name!r} depends on the global random state")


@on_every_toy
def micro_batches(bench: MethodBench) -> None:
    """B207: with ``gradient_accumulation_steps: 2`` and half the batch, a run is the same run."""
    raw = bench.raw_batch()
    whole, parts = bench.build(), bench.build()
    for iteration in range(1, steps_until_all_moved(whole) + 1):
        total = _accumulate(whole, [(raw, step_random(iteration, 2))], iteration)
        split = [(select(raw, [position]), _random_of(iteration, position)) for position in range(2)]
        halves = _accumulate(parts, split, iteration)
        require(total.keys() == halves.keys(), "a batch of two yields other losses than two of one")
        for name, value in total.items():
            require_close(halves[name], value, f"the loss {name!r} of two samples must be the mean of those of each")
        for handle, other in zip(whole.trained, parts.trained, strict=True):
            for parameter, again in zip(handle.trainable_parameters(), other.trainable_parameters(), strict=True):
                require(
                    (parameter.grad is None) == (again.grad is None),
                    f"gradients of {handle.name} come and go with the batch size",
                )
                if parameter.grad is not None and again.grad is not None:
                    message = f"the gradient of {handle.name} from two samples must be the mean of those of each"
                    require_close(again.grad, parameter.grad, message, tolerance=1e-3)
        forget_gradients(whole)
        forget_gradients(parts)


def _random_of(iteration: int, position: int) -> StepRandom:
    """The randomness of one sample of the batch: the shared generator begins anew in every micro-batch."""
    return step_random(iteration, 1, first_position=position)


def _accumulate(built: BuiltMethod, batches: list[tuple[RawBatch, StepRandom]], iteration: int) -> dict[str, Tensor]:
    """Backpropagate the mean over ``batches``; the losses by name."""
    values: dict[str, Tensor] = {}
    for raw, rng in batches:
        for loss in losses_of(built, raw, iteration, rng):
            built.adapter.backward(loss.value / len(batches), loss.ctx)
            values[loss.name] = values.get(loss.name, torch.zeros(())) + loss.value.detach() / len(batches)
    return values


@on_every_toy
def keeps_the_contract(bench: MethodBench) -> None:
    """B210: `fvd.step_contract`, as in every run."""
    built = bench.build()
    raw = bench.raw_batch()
    for iteration in range(1, steps_until_all_moved(built) + 1):
        for loss in losses_of(built, raw, iteration):
            built.adapter.backward(loss.value, loss.ctx)
        forget_gradients(built)
