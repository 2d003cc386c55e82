"""B401, B402: a validator on the toy, as the trainer uses it."""

from __future__ import annotations

from pathlib import Path

import torch

from fvd.samplers.sampling import load_sampler
from fvd.testing.conformance.asserts import global_random_state_untouched, require, same_state, state_of
from fvd.testing.conformance.counterparts import TOY_FAMILIES
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.toy_models import ToyModel, toy_model
from fvd.validation.base import Artifact, Validator, ValidatorContext
from fvd.validation.prompts import Prompt
from fvd.validation.request import SamplingPlan, ValidationRequest

PROMPTS = [Prompt("mode 1", seed=3), Prompt("a cat sleeps", seed=4)]
SAMPLER = "fvd-core:ode"


def _build(subject: Subject, toy: ToyModel, output_dir: Path) -> Validator:
    context = ValidatorContext(
        adapter=toy.adapter,
        load_sampler=lambda kind: load_sampler(subject.plugins, kind),
        prompts=PROMPTS,
        latent_shape=toy.shape,
        output_dir=output_dir,
        fps=8.0,
    )
    validator: Validator = subject.plugins.load("validator", subject.name)(context)
    return validator


def _request(toy: ToyModel) -> ValidationRequest:
    plan = SamplingPlan(role=toy.handle.name, sampler_kind=SAMPLER, sampling_steps=(2,), guidance_scale=2.0)
    return ValidationRequest(plan=plan, sample_handle=toy.handle)


def writes_artifacts(subject: Subject) -> None:
    """B401: at two steps, each in its own folder, under the same names."""
    toy = toy_model(subject.plugins, TOY_FAMILIES[0], "random", trainable=True)
    validator = _build(subject, toy, subject.make_folder("validation"))
    validator.on_train_start(_request(toy))
    toy.adapter.release()
    names = []
    for step in (0, 100):
        artifacts = validator.log_validation(step, _request(toy))
        require(
            isinstance(artifacts, list), f"log_validation must return a list of fvd.Artifact, got a {type(artifacts).__name__}"
        )
        folder = validator.step_dir(step)
        require(folder.is_dir(), f"step_dir({step}) must exist after log_validation: a resumed run takes it for a sign")
        for artifact in artifacts:
            require(
                isinstance(artifact, Artifact), f"log_validation must return fvd.Artifacts, got a {type(artifact).__name__}"
            )
            require(
                artifact.path.is_file() and artifact.path.stat().st_size > 0,
                f"the artifact {artifact.name} has no file {artifact.path}",
            )
            inside = folder.resolve() in artifact.path.resolve().parents
            require(inside, f"the artifact {artifact.name} of step {step} must lie in step_dir({step}), it is {artifact.path}")
        names.append([artifact.name for artifact in artifacts])
        require(len(set(names[-1])) == len(names[-1]), f"two artifacts have one name, among {names[-1]}")
    require(names[0] == names[1], f"artifacts must have the same names at every step, they are {names[0]} and {names[1]}")


def leaves_no_trace(subject: Subject) -> None:
    """B402: weights, gradients, modes and the global random state are those of the training that it interrupts."""
    toy = toy_model(subject.plugins, TOY_FAMILIES[0], "random", trainable=True)
    validator = _build(subject, toy, subject.make_folder("validation"))
    modules = list(toy.handle.modules.values())
    for parameter in toy.handle.trainable_parameters():
        parameter.grad = torch.ones_like(parameter)
    before, flags = state_of(modules), _flags(toy)
    with global_random_state_untouched("validation"):
        validator.on_train_start(_request(toy))
        validator.log_validation(0, _request(toy))
    require(same_state(before, state_of(modules)), "validation must not change weights or buffers")
    require(_flags(toy) == flags, "validation must leave every module's train or eval mode and requires_grad as they were")
    gradients = [parameter.grad for parameter in toy.handle.trainable_parameters()]
    kept = all(gradient is not None and bool((gradient == 1).all()) for gradient in gradients)
    require(kept, "validation must not touch gradients")
    require(torch.is_grad_enabled(), "validation must leave the grad mode as it was")


def _flags(toy: ToyModel) -> list[bool]:
    modules = [part for module in toy.handle.modules.values() for part in module.modules()]
    parameters = [parameter.requires_grad for module in toy.handle.modules.values() for parameter in module.parameters()]
    return [part.training for part in modules] + parameters
