"""A method on a toy family, fresh for every use: what the checks of methods share. And B201."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import torch
from torch import Tensor

from fvd.adapters import Adapter
from fvd.config.models import MethodConfig, PipelineConfig
from fvd.data.loader import build_loader
from fvd.data.spec import RawBatch
from fvd.families import Family, FamilyContext
from fvd.methods import Loss, Method
from fvd.rng import StepRandom
from fvd.roles import RoleHandle, RoleManager
from fvd.specs import FamilySpec, MethodSpec
from fvd.step_contract import check_method, checked_losses, checked_roles_to_update
from fvd.testing.conformance.contract import example_config
from fvd.testing.conformance.counterparts import fitting_toys, toy_family
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.outcomes import CheckFailure
from fvd.testing.conformance.runs import Trial
from fvd.testing.steps import step_random

CPU = torch.device("cpu")
MOST_STEPS = 20
"""A trained role that has not moved by then is not looked at."""


@dataclass(frozen=True)
class BuiltMethod:
    """A method, built anew, with everything that belongs to it. ``adapter`` is the family's own, whatever the method got."""

    method: Method
    adapter: Adapter
    roles: RoleManager

    @property
    def trained(self) -> list[RoleHandle]:
        return self.roles.trainable

    @property
    def frozen(self) -> list[RoleHandle]:
        return [handle for handle in self.roles if not handle.trainable]


class MethodBench:
    """One method on one toy family."""

    def __init__(self, subject: Subject, family: str) -> None:
        spec = subject.spec
        assert isinstance(spec, MethodSpec)
        self.subject = subject
        self.spec = spec
        self.family_name = family
        self.family_spec: FamilySpec = toy_family(subject.plugins, family)
        method_config = example_config(subject)
        assert isinstance(method_config, MethodConfig)
        pipeline: type[PipelineConfig] = subject.plugins.load_config("family", family)
        # What a method suggests for a pipeline, a family may not have.
        suggested = {key: value for key, value in spec.example.pipeline_config.items() if key in pipeline.model_fields}
        training = {key: value for key, value in spec.example.training.items() if key not in _INFRASTRUCTURE}
        self.trial = Trial(
            plugins=subject.plugins,
            family=family,
            method=subject.name,
            models={role: (f"random:{number}", spec.roles[role].trainable) for number, role in enumerate(spec.required_roles)},
            pipeline_config=pipeline.model_validate(suggested),
            method_config=method_config,
            training={
                "training_cfg_rate": 0.0,
                **training,
                "learning_rate": 1e-3,
                "lr_scheduler": "constant",
                "lr_warmup_steps": 0,
            },
        )
        self.run_config = self.trial.config(Path("unused"), MOST_STEPS)

    def build(self, wrap: Callable[[Adapter], Adapter] = lambda adapter: adapter) -> BuiltMethod:
        """As `fvd run` would, up to the first step. ``wrap`` comes between the method and the family's adapter."""
        config = self.run_config
        context = FamilyContext(config=config.pipeline_config, components_path="", device=CPU)
        family: Family = self.subject.plugins.load("family", self.family_name)(context)
        roles = RoleManager([family.load_role(name, role) for name, role in config.roles.items()])
        adapter = family.build_adapter(roles)
        method_class: type[Method] = self.subject.plugins.load("method", self.subject.name)
        method = method_class.build(run=config, roles=roles, adapter=wrap(adapter))
        check_method(method, self.spec)
        adapter.on_train_start()
        method.on_train_start()
        return BuiltMethod(method, adapter, roles)

    def raw_batch(self) -> RawBatch:
        """The first samples that a run would see."""
        with closing(self.raw_batches()) as batches:
            return next(batches)

    def raw_batches(self) -> Generator[RawBatch]:
        """What a run would see. Close it."""
        config = self.run_config
        context = FamilyContext(config=config.pipeline_config, components_path="", device=CPU)
        data_spec = self.subject.plugins.load("family", self.family_name)(context).data_spec()
        method_class: type[Method] = self.subject.plugins.load("method", self.subject.name)
        needs_latents = method_class.latents_source(config) == "data"
        plugins, family = self.subject.plugins, self.family_spec
        kind = plugins.dataset_kind_of(family)
        yield from build_loader(config, plugins, kind, data_spec, needs_latents=needs_latents)


_INFRASTRUCTURE = {
    "output_dir",
    "data_path",
    "max_train_steps",
    "train_batch_size",
    "gradient_accumulation_steps",
    "log_validation",
}
"""Keys of an example's ``training:`` that the kit sets itself."""


def toy_benches(subject: Subject) -> list[MethodBench]:
    return [MethodBench(subject, family) for family in fitting_toys(subject)]


def on_every_toy(check: Callable[[MethodBench], str | None]) -> Callable[[Subject], str | None]:
    """A check of a method from a check of it on one toy family. A failure says on which."""

    @wraps(check)
    def on_all(subject: Subject) -> str | None:
        notes = []
        for bench in subject.methods:
            try:
                notes.append(check(bench))
            except CheckFailure as failure:
                raise CheckFailure(f"on the family {bench.family_spec.name}: {failure}") from failure
        return next((note for note in notes if note), None)

    return on_all


def losses_of(built: BuiltMethod, raw: RawBatch, iteration: int, rng: StepRandom | None = None) -> Iterator[Loss]:
    """The losses of one micro-batch, with the trainer's own checks of the contract; backpropagate between two."""
    return checked_losses(built.method, raw, iteration, rng or step_random(iteration, raw.batch_size))


def train_step(built: BuiltMethod, raw: RawBatch, iteration: int) -> dict[str, Tensor]:
    """One step without clipping. Returns the losses by name, detached."""
    values: dict[str, Tensor] = {}
    for loss in losses_of(built, raw, iteration):
        built.adapter.backward(loss.value, loss.ctx)
        values[loss.name] = loss.value.detach().clone()
    due = checked_roles_to_update(built.method, iteration)
    for role in due:
        for optimizer in built.roles[role].optimizers.values():
            optimizer.step()
        for scheduler in built.roles[role].lr_schedulers.values():
            scheduler.step()
    forget_gradients(built)
    built.method.on_step_end(iteration)
    return values


def forget_gradients(built: BuiltMethod) -> None:
    for handle in built.roles:
        for module in handle.modules.values():
            module.zero_grad(set_to_none=True)


def steps_until_all_moved(built: BuiltMethod) -> int:
    """The first iteration by which every trained role has been due, at least 2."""
    waiting = {handle.name for handle in built.trained}
    for iteration in range(1, MOST_STEPS + 1):
        waiting -= set(checked_roles_to_update(built.method, iteration))
        if not waiting:
            return max(iteration, 2)
    raise CheckFailure(f"{', '.join(sorted(waiting))} is trained, and never due in {MOST_STEPS} steps")


@on_every_toy
def builds(bench: MethodBench) -> None:
    """B201."""
    bench.build()
    bench.raw_batch()
